#!/usr/bin/env bash
# Runs the benchmarks and prints one line for each job and size:
#
#   job size gvstream_ns peer peer_ns floor_ns peer/gvstream gvstream/floor allocs
#
# Medians of all runs. The peer is the fastest one; '-' where there is none. A job
# like Publish-checked is another form of gvstream in the job Publish, beside the
# same peers. For Memory, all figures are bytes of heap a session. Lines that begin
# with # are none of these.
#
#   -short      three runs, in under five minutes
#   -runs n     so many runs; 10 if not given
#   -job regex  only jobs whose name matches, such as 'Publish|Replay'
#   -cpu        compare the CPU time of the process instead of the time that passed
#   -all        print a line for each peer, instead of the fastest one's
#   -md         print a Markdown table
#   -readme     put that table into README.md instead; with -cpu, into its second one
#   -raw file   keep the output of the benchmarks there
#   -from file  run nothing, and compare what -raw has kept
set -euo pipefail
cd "$(dirname "$0")"

runs=10 benchtime=300ms job=. unit=ns/op all=0 md=0 readme=0 raw='' from=''
while [ $# -gt 0 ]; do
	case $1 in
	-short) runs=3 benchtime=20ms ;;
	-runs) runs=$2 && shift ;;
	-job) job=$2 && shift ;;
	-cpu) unit=cpu-ns/op ;;
	-all) all=1 ;;
	-md) md=1 ;;
	-readme) md=1 readme=1 ;;
	-raw) raw=$2 && shift ;;
	-from) from=$2 && shift ;;
	*) sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2 && exit 2 ;;
	esac
	shift
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if [ -z "$from" ]; then
	from=${raw:-$tmp/raw}
	go test -c -o "$tmp/bench" .
	jobs=$("$tmp/bench" -test.list '^Benchmark' | grep -E "^Benchmark.*($job)" | grep -v Instructions || true)
	[ -n "$jobs" ] || { echo "no job matches $job" >&2 && exit 2; }
	procs=$(nproc)
	echo "# $(go version | cut -d' ' -f3-), $procs processors, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(date -u +%F)" >"$from"
	# The whole set again and again, so that a change of the machine's mood meets all.
	# What a session takes is the same every time: it is taken once.
	for run in $(seq "$runs"); do
		[ "$run" = 1 ] || jobs=$(grep -v '^BenchmarkMemory$' <<<"$jobs" || true)
		[ -z "$jobs" ] || "$tmp/bench" -test.run '^$' -test.bench "^($(paste -sd'|' <<<"$jobs"))\$" \
			-test.benchtime "$benchtime" -test.cpu "$procs" -test.timeout 2h >>"$from" 2>&1 ||
			echo "# a benchmark failed: see below" >&2
		echo "# run $run of $runs, $benchtime each, load $(cut -d' ' -f1 /proc/loadavg)" | tee -a "$from" >&2
	done
fi

summary() { awk -v unit="$unit" -v all="$all" -v md="$md" "$program" "$from"; }

program='
function median(list,    n, v, i, j, x) {
	n = split(list, v, " ")
	for (i = 2; i <= n; i++) {
		x = v[i] + 0
		for (j = i - 1; j > 0 && v[j] + 0 > x; j--) v[j + 1] = v[j]
		v[j + 1] = x
	}
	return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}
function figure(x) { return x == "" ? "-" : sprintf(x < 100 ? "%.3g" : "%.0f", x) }
function ratio(a, b) { return a == "" || b == "" || b == 0 ? "-" : sprintf(a / b < 100 ? "%.2f" : "%.0f", a / b) }
function line(job, size, row, peer, theirs, floor,    own, format) {
	own = median(time[job, row, size])
	format = "%s %s %s %s %s %s %s %s %s\n"
	if (md) format = "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n"
	printf format, job substr(row, 9), size, figure(own), peer == "" ? "-" : peer, figure(theirs), figure(floor), ratio(theirs, own),
		ratio(own, floor), (job, row, size) in allocs ? figure(median(allocs[job, row, size])) : "-"
}
function lines(job, size, row,    i, name, x, peer, best, floor) {
	if ((job, "floor", size) in time) floor = median(time[job, "floor", size])
	for (i = 1; i <= rows[job]; i++) {
		name = rowname[job, i]
		if (name ~ /^(gvstream|floor)/ || !((job, name, size) in time)) continue
		if (row ~ /-checked$/ && name ~ /sonicfast$/) continue # it does not check
		x = median(time[job, name, size])
		if (all) line(job, size, row, name, x, floor)
		if (best == "" || x < best) { best = x; peer = name }
	}
	if (!all || peer == "") line(job, size, row, peer, best, floor)
}
/^# run/ { procsline = $0; next }
/^#/ { print md ? substr($0, 3) : $0; match($0, /[0-9]+ processors/); procs = substr($0, RSTART) + 0; next }
/^Benchmark/ && NF > 3 {
	name = $1
	sub(/^Benchmark/, "", name)
	if (procs > 1) sub("-" procs "$", "", name)
	split(name, part, "/")
	job = part[1]; row = part[2]; size = part[3]
	if (!(job in rows)) { jobs[++njobs] = job; rows[job] = 0; sizes[job] = 0 }
	if (!((job, row) in seenrow)) { seenrow[job, row] = 1; rowname[job, ++rows[job]] = row }
	if (!((job, size) in seensize)) { seensize[job, size] = 1; sizename[job, ++sizes[job]] = size }
	for (i = 3; i < NF; i += 2) {
		if ($(i + 1) == (job == "Memory" ? "B/session" : unit)) time[job, row, size] = time[job, row, size] " " $i
		if ($(i + 1) == "allocs/op" && job != "Memory") allocs[job, row, size] = allocs[job, row, size] " " $i
	}
}
/^(FAIL|---|panic)/ { print "# " $0; failed = 1 }
END {
	if (procsline) print (md ? "\nLast" : "# last") substr(procsline, 2) (unit == "ns/op" ? "" : ". CPU time.")
	head = "job size gvstream_ns peer peer_ns floor_ns peer/gvstream gvstream/floor allocs"
	if (md) { gsub(" ", " | ", head); print "\n| " head " |\n|---|---|--:|---|--:|--:|--:|--:|--:|" }
	else print "# " head
	for (j = 1; j <= njobs; j++)
		for (r = 1; r <= rows[jobs[j]]; r++)
			if (rowname[jobs[j], r] ~ /^gvstream/)
				for (s = 1; s <= sizes[jobs[j]]; s++)
					if ((jobs[j], rowname[jobs[j], r], sizename[jobs[j], s]) in time)
						lines(jobs[j], sizename[jobs[j], s], rowname[jobs[j], r])
	exit failed
}'
if [ "$readme" = 0 ]; then
	summary
else
	summary >"$tmp/table" || { cat "$tmp/table" >&2 && exit 1; }
	awk -v table="$tmp/table" -v unit="$unit" '
	$0 == "<!-- end " unit " -->" { while ((getline row < table) > 0) print row; inside = 0 }
	!inside { print }
	$0 == "<!-- begin " unit " -->" { inside = 1 }' README.md >"$tmp/readme"
	cp "$tmp/readme" README.md
fi

#!/usr/bin/env bash
# Counts the instructions of the small hot paths with valgrind's callgrind, and
# prints a line for each: its name, and instructions for one operation. An argument
# is a regex of names, such as 'publish|ack'. Needs valgrind.
#
# Each path runs n times, and 4n times in another process. What the second executes
# beyond the first, divided by 3n, is an operation without what comes before it.
# There is one processor, no garbage collection and no preemption, which callgrind
# does not survive.
set -euo pipefail
cd "$(dirname "$0")"
export GOMAXPROCS=1 GOGC=off GODEBUG=asyncpreemptoff=1

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test -c -o "$tmp/bench" .

count() { # name, times
	valgrind --tool=callgrind --callgrind-out-file="$tmp/out" "$tmp/bench" -test.run '^$' \
		-test.bench "^BenchmarkInstructions\$/^$1\$" -test.benchtime "$2x" -test.cpu 1 2>&1 |
		sed -n 's/.*Collected : //p'
}

while read -r name n; do
	[[ $name =~ ${1:-.} ]] || continue
	echo "$name $((($(count "$name" $((4 * n))) - $(count "$name" "$n")) / (3 * n)))"
done <<-END
	publish 2560
	trusted 2560
	cycle 2560
	ack 8000
	encode 64
	decode 64
END

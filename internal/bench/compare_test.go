package bench

import (
	"os/exec"
	"strings"
	"testing"
)

// compare.sh takes medians, the fastest peer or all, and no peer that trusts beside a form
// that checks.
func TestCompare(t *testing.T) {
	const head = "job size gvstream_ns peer peer_ns floor_ns peer/gvstream gvstream/floor allocs"
	for args, lines := range map[string][]string{
		"": {
			"# go1.26.8 linux/amd64, 2 processors, some machine, 2026-11-25",
			"# last run 3 of 3, 20ms each, load 1.00",
			"# " + head,
			"Job ack-1 20 mapring+sonicfast 50 5 2.50 4.00 0",
			"Job-checked ack-1 40 mapring+sonic 60 5 1.50 8.00 2",
			"Alone 64B 2 - - - - - 0",
			"Memory empty 160 slice 80 - 0.50 - -",
		},
		"-all": {
			"# go1.26.8 linux/amd64, 2 processors, some machine, 2026-11-25",
			"# last run 3 of 3, 20ms each, load 1.00",
			"# " + head,
			"Job ack-1 20 mapring+sonic 60 5 3.00 4.00 0",
			"Job ack-1 20 mapring+sonicfast 50 5 2.50 4.00 0",
			"Job-checked ack-1 40 mapring+sonic 60 5 1.50 8.00 2",
			"Alone 64B 2 - - - - - 0",
			"Memory empty 160 slice 80 - 0.50 - -",
		},
		"-cpu": {
			"# go1.26.8 linux/amd64, 2 processors, some machine, 2026-11-25",
			"# last run 3 of 3, 20ms each, load 1.00. CPU time.",
			"# " + head,
			"Job ack-1 9 mapring+sonic 8 4 0.89 2.25 0",
			"Job-checked ack-1 9 mapring+sonic 8 4 0.89 2.25 2",
			"Alone 64B 1 - - - - - 0",
			"Memory empty 160 slice 80 - 0.50 - -",
		},
	} {
		out, err := exec.Command("./compare.sh", append(strings.Fields(args), "-from", "testdata/raw.txt")...).Output()
		must(t, err)
		want(t, "compare.sh "+args, string(out), strings.Join(lines, "\n")+"\n")
	}
}

package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vibetools/gvstream/internal/overlay"
)

// A fault is a rule of PROTOCOL.md taken out of the code.
type fault struct {
	rule, name string
	breaks     string // the invariant that has to be seen broken
	within     string // schedules. enough that, at the share of 200 that see it, they would miss it once in ten thousand times
}

// A planting is a text of the root package that is replaced, for the faults it names.
type planting struct {
	faults   []string
	old, new string
}

// readFaults reads testdata/faults.txt.
func readFaults(t *testing.T) (faults []fault, plantings []planting) {
	text, err := os.ReadFile("testdata/faults.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range strings.Split(string(text), "\n\n") {
		var p planting
		var old, new []string
		for line := range strings.Lines(block) {
			line = strings.TrimSuffix(line, "\n")
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, "rule "):
				f, also, err := parseFault(line)
				if err != nil {
					t.Fatal(err)
				}
				if p.faults = append(p.faults, f.name); !also {
					faults = append(faults, f)
				}
			case strings.HasPrefix(line, "-"):
				old = append(old, line[1:])
			case strings.HasPrefix(line, "+"):
				new = append(new, line[1:])
			default:
				t.Fatalf("faults.txt: what is %q?", line)
			}
		}
		if len(p.faults) > 0 {
			p.old, p.new = strings.Join(old, "\n")+"\n", strings.Join(new, "\n")+"\n"
			plantings = append(plantings, p)
		}
	}
	return faults, plantings
}

// parseFault reads "rule 6: old ack | oldAck | breaks S5 within 1000", or the head of
// a fault's further block, which ends in "also".
func parseFault(line string) (f fault, also bool, err error) {
	parts := strings.Split(line, " | ")
	if len(parts) != 3 {
		return f, false, fmt.Errorf("faults.txt: %q has not three parts", line)
	}
	f.rule, f.name = parts[0], parts[1]
	if parts[2] == "also" {
		return f, true, nil
	}
	rest, ok := strings.CutPrefix(parts[2], "breaks ")
	f.breaks, f.within, _ = strings.Cut(rest, " within ")
	if !ok || f.breaks == "" || f.within == "" {
		err = fmt.Errorf("faults.txt: %q says not what breaks within how many schedules", line)
	}
	return f, false, err
}

// plant puts all faults into the sources of the root package. A text that stands
// nowhere, or in more than one place, fails by its faults' names.
func plant(t *testing.T, sources overlay.Sources, plantings []planting) {
	for _, p := range plantings {
		for _, fault := range p.faults {
			if !strings.Contains(p.new, fmt.Sprintf("planted(%q)", fault)) {
				t.Fatalf("%s: its new text never asks for it", fault)
			}
		}
		places, in := 0, ""
		for name, text := range sources {
			if n := strings.Count(text, p.old); n > 0 {
				places, in = places+n, name
			}
		}
		if places != 1 {
			t.Errorf("%s: its text stands in %d places of the package, not in one:\n%s", strings.Join(p.faults, ", "), places, p.old)
			continue
		}
		sources[in] = strings.Replace(sources[in], p.old, p.new, 1)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// build builds the root package's tests with all faults in it.
func build(t *testing.T, root string, plantings []planting) string {
	sources, err := overlay.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	plant(t, sources, plantings)
	if err := sources.Add(root, "testdata/planted.go", "testdata/planted_test.go"); err != nil {
		t.Fatal(err)
	}
	binary, err := sources.Build(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestSimulationCatches: with any one rule taken out, the simulation finds a violation,
// and it is of the invariant that the rule guards. A rule that can be taken out unseen
// is one that the simulation does not test. With all faults asleep it finds nothing.
func TestSimulationCatches(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	faults, plantings := readFaults(t)
	binary := build(t, root, plantings)
	run := func(name, test string, env ...string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(binary, "-test.run=^"+test+"$", "-test.v")
			cmd.Dir, cmd.Env = root, append(os.Environ(), env...)
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if err != nil || !strings.Contains(string(out), "--- PASS: "+test+" ") {
				t.Errorf("%s did not pass: %v", test, err)
			}
		})
	}
	run("none", "TestPlanted", "GVSTREAM_FAULT=", "GVSTREAM_BREAKS=", "GVSTREAM_WITHIN=200")
	run("shrinks", "TestPlantedShrinks")
	for _, f := range faults {
		run(f.name, "TestPlanted", "GVSTREAM_FAULT="+f.name, "GVSTREAM_BREAKS="+f.breaks, "GVSTREAM_WITHIN="+f.within)
	}
}

package scenarios_test

import "testing"

// TestFound has a subtest for each fault that was found by programs that use the public methods
// only, under the id that it has in the list of them. Each function's comment says what was
// seen.
func TestFound(t *testing.T) {
	for _, fault := range []struct {
		id  string
		run func(t *testing.T)
	}{
		{"F01", foundF01},
		{"F02", foundF02},
		{"F03", foundF03},
		{"F04", foundF04},
		{"F05", foundF05},
		{"F06", foundF06},
		{"F07", foundF07},
		{"F08", foundF08},
		{"F09", foundF09},
		{"F10", foundF10},
		{"F11", foundF11},
		{"F12", foundF12},
		{"F13", foundF13},
		{"F14", foundF14},
		{"F15", foundF15},
		{"F16", foundF16},
		{"F17", foundF17},
		{"F18", foundF18},
		{"F19", foundF19},
		{"F20", foundF20},
		{"F21", foundF21},
		{"F23", foundF23},
		{"F24", foundF24},
		{"F25", foundF25},
		{"F26", foundF26},
		{"F27", foundF27},
		{"F28", foundF28},
		{"F29", foundF29},
		{"F30", foundF30},
	} {
		t.Run(fault.id, func(t *testing.T) {
			if fault.id != "F26" { // the process's epochs follow the clocks of all bubbles
				t.Parallel()
			}
			fault.run(t)
		})
	}
}

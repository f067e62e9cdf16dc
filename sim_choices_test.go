package gvstream

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
)

// A source makes the choices of one schedule of the simulation: first those for the
// world's start, then those for each step, and finally those for the time after faults
// have stopped. By convention 0 is the plainest choice.
type source interface {
	next() bool // begins the next step; false: there is none
	choose(n int) int
}

// A seeded source makes random choices.
type seeded struct {
	r     *rand.Rand
	steps int
}

func newSeeded(seed uint64, steps int) *seeded {
	return &seeded{rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), steps}
}

func (s *seeded) next() bool {
	s.steps--
	return s.steps >= 0
}

func (s *seeded) choose(n int) int { return s.r.IntN(n) }

// A byteSource takes its choices from bytes, until there are none.
type byteSource struct{ data []byte }

func (s *byteSource) next() bool { return len(s.data) > 0 }

func (s *byteSource) choose(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	c := int(s.data[0]) % n
	s.data = s.data[1:]
	return c
}

// A schedule is the choices that were made: of the beginning, of each step, and
// of the time after faults. Choices that are missing are 0, and ones that are too
// large count modulo what there is to choose from, so every schedule is valid.
type schedule [][]int

func (s schedule) String() string {
	var b strings.Builder
	for _, choices := range s {
		b.WriteString(strings.Trim(fmt.Sprint(choices), "[]") + "\n")
	}
	return b.String()
}

// readSchedule reads what String wrote, after lines of comment.
func readSchedule(name string) (schedule, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var s schedule
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		choices := []int{}
		for _, field := range strings.Fields(line) {
			n, err := strconv.Atoi(field)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("%s: no choice: %q", name, field)
			}
			choices = append(choices, n)
		}
		s = append(s, choices)
	}
	return s, nil
}

// A replayer makes the choices of a schedule again.
type replayer struct {
	rest schedule
}

func (r *replayer) next() bool {
	if len(r.rest) > 0 {
		r.rest = r.rest[1:]
	}
	return len(r.rest) > 1
}

func (r *replayer) choose(n int) int {
	if len(r.rest) == 0 || len(r.rest[0]) == 0 {
		return 0
	}
	c := r.rest[0][0] % n
	r.rest[0] = r.rest[0][1:]
	return c
}

func newReplayer(s schedule) *replayer { return &replayer{append(schedule(nil), s...)} }

// A recorder notes the choices that another source makes.
type recorder struct {
	source
	made  schedule
	ended bool
}

func newRecorder(s source) *recorder { return &recorder{source: s, made: schedule{nil}} }

func (r *recorder) next() bool {
	r.made = append(r.made, nil)
	more := r.source.next()
	r.ended = !more
	return more
}

func (r *recorder) choose(n int) int {
	c := r.source.choose(n)
	last := len(r.made) - 1
	r.made[last] = append(r.made[last], c)
	return c
}

// schedule is what was recorded. A schedule that failed in a step has no choices
// after faults.
func (r *recorder) schedule() schedule {
	if r.ended {
		return r.made
	}
	return append(r.made, nil)
}

// An enumerator makes all choices, one schedule after the other: the last choice
// changes first.
type enumerator struct {
	depth  int // steps of a schedule
	steps  int
	path   []int // the choices of this schedule
	of     []int // and out of how many each
	at     int
	prefix int // choices that don't change
}

func (e *enumerator) next() bool {
	e.steps++
	return e.steps <= e.depth
}

func (e *enumerator) choose(n int) int {
	if e.steps > e.depth { // after faults
		return 0
	}
	if e.at == len(e.path) {
		e.path, e.of = append(e.path, 0), append(e.of, n)
	}
	e.of[e.at] = n
	e.at++
	return e.path[e.at-1]
}

// advance moves to the next schedule that differs in a choice that was used; false if
// there is none.
func (e *enumerator) advance() bool {
	e.path, e.of = e.path[:e.at], e.of[:e.at]
	for i := len(e.path) - 1; i >= e.prefix; i-- {
		if e.path[i]+1 < e.of[i] {
			e.path[i]++
			e.path, e.of = e.path[:i+1], e.of[:i+1]
			e.at, e.steps = 0, 0
			return true
		}
	}
	return false
}

// shrink makes a failing schedule shorter and its choices smaller, for as long as
// it fails. It asks at most tries times.
func shrink(s schedule, tries int, fails func(schedule) bool) schedule {
	try := func(smaller schedule) bool {
		if tries--; tries < 0 || !fails(smaller) {
			return false
		}
		s = smaller
		return true
	}
	for before := -1; before != s.weight() && tries > 0; {
		before = s.weight()
		for n := max(1, (len(s)-2)/2); n > 0; n /= 2 { // cut out n steps
			for i := 1; i+n < len(s) && tries > 0; {
				if !try(append(s[:i:i], s[i+n:]...)) {
					i += n
				}
			}
		}
		for i := range s {
			try(s.with(i, nil))
			for j := 0; j < len(s[i]) && tries > 0; j++ {
				for _, c := range []int{0, s[i][j] / 2, s[i][j] - 1} {
					if c >= 0 && c < s[i][j] && try(s.with(i, append(append(s[i][:j:j], c), s[i][j+1:]...))) {
						break
					}
				}
			}
		}
	}
	return s
}

// with is s with other choices at i.
func (s schedule) with(i int, choices []int) schedule {
	out := append(schedule(nil), s...)
	out[i] = choices
	return out
}

// weight is smaller for a schedule that is simpler.
func (s schedule) weight() int {
	n := 0
	for _, choices := range s {
		n += 1 << 20
		for _, c := range choices {
			n += c + 1
		}
	}
	return n
}

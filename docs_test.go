package gvstream

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestProtocolExamples: the payloads in PROTOCOL.md are what the library reads and, but for
// fields that it leaves out when they are zero, writes. Each type has one.
func TestProtocolExamples(t *testing.T) {
	page, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]bool)
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			p, err := Unmarshal([]byte(line))
			if err != nil {
				t.Errorf("%v: %s", err, line)
				continue
			}
			shown[p.payloadType()] = true
			again, err := Marshal(p)
			if diff := cmp.Diff(strings.TrimSpace(line), string(again)); err != nil || diff != "" {
				t.Errorf("%v; -page +library\n%s", err, diff)
			}
		}
	}
	if len(shown) != 9 {
		t.Errorf("types shown: %v, want all 9", shown)
	}
}

// TestProtocolCodes: the page has a row for each code, and no other.
func TestProtocolCodes(t *testing.T) {
	page, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n## Error codes\n")
	table, _, _ = strings.Cut(table, "\n## ")
	inPage, inCode := make(map[string]bool), make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(table, -1) {
		inPage[row[1]] = true
	}
	for _, c := range regexp.MustCompile(`(?m)^\tcode\w+ += "([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		inCode[c[1]] = true
	}
	if diff := cmp.Diff(inPage, inCode); diff != "" || len(inCode) < 16 {
		t.Errorf("%d codes; -page +code\n%s", len(inCode), diff)
	}
}

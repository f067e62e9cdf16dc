package gvstream

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestProtocolExamples: the payloads in PROTOCOL.md are what the library reads and,
// except for fields that it omits when they are zero, writes. Each type has one.
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

// TestProtocolCodes: the page has a row for each code, and no others.
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
	for _, c := range regexp.MustCompile(`(?m)^\tCode\w+ Code += "([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		inCode[c[1]] = true
	}
	if diff := cmp.Diff(inPage, inCode); diff != "" || len(inCode) < 16 {
		t.Errorf("%d codes; -page +code\n%s", len(inCode), diff)
	}
}

// The tests, limits and payloads that SECURITY.md names exist, and each row of its
// tables of attacks names a test.
func TestSecurityPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := declarations(t)
	modes, err := os.ReadFile("internal/scenarios/failure_modes_test.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`([A-Za-z]+\\.)?([A-Za-z_]+)(/M[0-9a-z]+)?`")
	for _, m := range names.FindAllStringSubmatch(string(page), -1) {
		name := m[2]
		if newPayload(name) == nil && !declared[name] && !declared["code:"+name] && name != "stop" {
			t.Errorf("%s: there is no %s", m[0], name)
		}
		if id := strings.TrimPrefix(m[3], "/"); id != "" && !strings.Contains(string(modes), `"`+id+`"`) {
			t.Errorf("%s: there is no such failure mode", m[0])
		}
	}
	rows := 0
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| ") && strings.Contains(line, "`Test") {
			rows++
		} else if strings.HasPrefix(line, "| ") && !strings.Contains(line, "| test |") && rows > 0 && strings.Count(line, "|") >= 6 {
			t.Errorf("a row without a test: %s", line)
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows", rows)
	}
}

// declarations are the names that the package and those below internal declare, fields
// and tests included, and the codes of errors with the prefix "code:".
func declarations(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Glob("internal/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, file := range append(files, below...) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
			case *ast.TypeSpec:
				names[n.Name.Name] = true
			case *ast.ValueSpec:
				for i, name := range n.Names {
					names[name.Name] = true
					if i < len(n.Values) {
						if lit, ok := n.Values[i].(*ast.BasicLit); ok && strings.HasPrefix(name.Name, "Code") {
							names["code:"+strings.Trim(lit.Value, `"`)] = true
						}
					}
				}
			case *ast.Field:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			}
			return true
		})
	}
	return names
}

// CONTRIBUTING.md shows which file is for what: each file that it names is there, and
// each source file of the package but doc.go is named.
func TestContributingFiles(t *testing.T) {
	page, err := os.ReadFile("CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, m := range regexp.MustCompile("`([a-z0-9_/]+\\.go)`").FindAllStringSubmatch(string(page), -1) {
		named[m[1]] = true
		if _, err := os.Stat(m[1]); err != nil {
			t.Error(err)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") && file != "doc.go" && !named[file] {
			t.Errorf("CONTRIBUTING.md does not say what %s is for", file)
		}
	}
}

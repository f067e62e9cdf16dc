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
)

// SECURITY.md names tests, limits and payloads that there are, and a test in each row
// of its tables of attacks.
func TestSecurityPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := declarations(t)
	modes, err := os.ReadFile("failure_modes_test.go")
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
// and tests included, and the codes of errors behind "code:".
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
	files = append(files, below...)
	names := make(map[string]bool)
	for _, file := range files {
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
						if lit, ok := n.Values[i].(*ast.BasicLit); ok && strings.HasPrefix(name.Name, "code") {
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

package lockorder

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vibetools/gvstream/internal/overlay"
)

// An edit replaces the text between two offsets of a file.
type edit struct {
	from, to int
	text     string
}

func apply(text string, edits []edit) string {
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(b.from, a.from) })
	for _, e := range edits {
		text = text[:e.from] + e.text + text[e.to:]
	}
	return text
}

var levelComment = regexp.MustCompile(`\blevel ([1-4])\b`)

// A rewriter makes the locks of a package check their order.
type rewriter struct {
	t         *testing.T
	fset      *token.FileSet
	files     map[string]*ast.File
	edits     map[string][]edit
	lockers   map[string]bool // types with a lock called mu, their own or an embedded type's
	locks     int
	methods   int
	callbacks int
}

func newRewriter(t *testing.T, sources overlay.Sources) *rewriter {
	r := &rewriter{
		t: t, fset: token.NewFileSet(), files: make(map[string]*ast.File),
		edits: make(map[string][]edit), lockers: make(map[string]bool),
	}
	for name, text := range sources {
		f, err := parser.ParseFile(r.fset, name, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		r.files[name] = f
	}
	return r
}

func (r *rewriter) replace(name string, from, to token.Pos, text string) {
	r.edits[name] = append(r.edits[name], edit{r.fset.Position(from).Offset, r.fset.Position(to).Offset, text})
}

// structs calls f with each struct type of the package.
func (r *rewriter) structs(f func(file, typ string, s *ast.StructType)) {
	for name, file := range r.files {
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					f(name, spec.Name.Name, s)
				}
			}
			return true
		})
	}
}

// replaceLocks gives each lock the level that its comment says.
func (r *rewriter) replaceLocks() {
	r.structs(func(file, typ string, s *ast.StructType) {
		for _, field := range s.Fields.List {
			sel, ok := field.Type.(*ast.SelectorExpr)
			if !ok || fmt.Sprint(sel.X) != "sync" || sel.Sel.Name != "Mutex" && sel.Sel.Name != "RWMutex" {
				continue
			}
			level := levelComment.FindStringSubmatch(field.Comment.Text())
			if level == nil || len(field.Names) != 1 {
				r.t.Errorf("%s: the comment on a lock of %s says no level", r.fset.Position(field.Pos()), typ)
				continue
			}
			r.replace(file, field.Type.Pos(), field.Type.End(), "ordered"+sel.Sel.Name+"[lockLevel"+level[1]+"]")
			r.locks++
			if field.Names[0].Name == "mu" {
				r.lockers[typ] = true
			}
		}
	})
}

// findEmbedded finds the types that have the lock of one that they embed.
func (r *rewriter) findEmbedded() {
	for found := true; found; {
		found = false
		r.structs(func(_, typ string, s *ast.StructType) {
			for _, field := range s.Fields.List {
				if len(field.Names) == 0 && r.lockers[baseName(field.Type)] && !r.lockers[typ] {
					r.lockers[typ], found = true, true
				}
			}
		})
	}
}

func baseName(e ast.Expr) string {
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// lockOf is where the lock is that protects a type which has none of its own, from a
// value of the type.
var lockOf = map[string]string{
	"handshake":    "l.mu",
	"sender":       "s.mu",
	"replayAnswer": "sender.s.mu",
	"receiver":     "s.mu",
	"opening":      "ha.mu",
	"cursor":       "s.mu",
	"cohort":       "s.mu",
	"fetch":        "s.mu",
	"viewerLink":   "v.mu", // though it embeds a Link
	"subscription": "vl.v.mu",
}

// both are the types whose lock a method wants besides that of the session it is given.
var both = map[string]bool{"Hub": true}

// sessions are the types whose lock a method wants that is given one of them.
var sessions = map[string]bool{"Session": true, "hubSession": true}

// checkLocked has the methods that end in Locked look for the lock that they want: that of
// the session which they are given, or else that of their receiver.
func (r *rewriter) checkLocked() {
	for name, file := range r.files {
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv == nil || !strings.HasSuffix(f.Name.Name, "Locked") {
				continue
			}
			typ := baseName(f.Recv.List[0].Type)
			locks := r.wanted(f, typ)
			if len(locks) == 0 {
				r.t.Errorf("%s: %s.%s: which lock does it want?", r.fset.Position(f.Pos()), typ, f.Name.Name)
				continue
			}
			for _, lock := range locks {
				text := fmt.Sprintf(" mustHold(unsafe.Pointer(&%s), %q); ", lock, typ+"."+f.Name.Name)
				r.replace(name, f.Body.Lbrace+1, f.Body.Lbrace+1, text)
			}
			r.methods++
		}
	}
}

// wanted returns the locks that a method wants held, or none if that is not known.
func (r *rewriter) wanted(f *ast.FuncDecl, typ string) (locks []string) {
	for _, param := range f.Type.Params.List {
		if sessions[baseName(param.Type)] && len(param.Names) == 1 {
			locks = append(locks, param.Names[0].Name+".mu")
		}
	}
	receiver := f.Recv.List[0].Names
	switch {
	case len(receiver) == 0, len(locks) > 0 && !both[typ]:
	case lockOf[typ] != "":
		locks = append(locks, receiver[0].Name+"."+lockOf[typ])
	case r.lockers[typ]:
		locks = append(locks, receiver[0].Name+".mu")
	}
	return locks
}

// callbacks are the fields of configurations that callers set.
var callbacks = map[string]bool{"AuthorizeViewer": true, "Commit": true, "Resume": true, "AuthorizeAgent": true}

// checkCallbacks has the calls of what callers plug in look that no lock is held: the
// callbacks of a configuration, and functions that send and receive.
func (r *rewriter) checkCallbacks() {
	for name, file := range r.files {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if ok && isCallback(call.Fun) {
				r.replace(name, call.Fun.Pos(), call.Fun.Pos(), "unlocked(")
				r.replace(name, call.Fun.End(), call.Fun.End(), ")")
				r.callbacks++
			}
			return true
		})
	}
}

func isCallback(fun ast.Expr) bool {
	switch fun := fun.(type) {
	case *ast.Ident:
		return fun.Name == "send" || fun.Name == "receive"
	case *ast.SelectorExpr:
		if x, ok := fun.X.(*ast.SelectorExpr); ok && x.Sel.Name == "cfg" {
			return callbacks[fun.Sel.Name]
		}
		return fun.Sel.Name == "send" && fmt.Sprint(fun.X) == "p"
	}
	return false
}

// rewrite returns the sources with locks that check their order.
func (r *rewriter) rewrite(sources overlay.Sources) {
	for name, edits := range r.edits {
		text := apply(sources[name], edits)
		if strings.Contains(text, "mustHold(") {
			text = strings.Replace(text, "package gvstream\n", "package gvstream\n\nimport \"unsafe\"\n", 1)
		}
		if strings.Contains(text, "\"sync\"\n") {
			text += "\nvar _ sync.Locker // still imported\n"
		}
		sources[name] = text
	}
}

// TestLockOrder runs the root package's tests with locks that check their order.
// Tests that count allocations or the time of a lock are left out: the checks have both.
func TestLockOrder(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := overlay.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	r := newRewriter(t, sources)
	r.replaceLocks()
	r.findEmbedded()
	r.checkLocked()
	r.checkCallbacks()
	if t.Failed() {
		t.FailNow()
	}
	if r.locks < 10 || r.methods < 100 || r.callbacks < 7 {
		t.Fatalf("found %d locks, %d methods that want one and %d callbacks: the search is wrong", r.locks, r.methods, r.callbacks)
	}
	r.rewrite(sources)
	if err := sources.Add(root, "testdata/lockorder.go", "testdata/lockorder_test.go", "testdata/goroutine_"+runtime.GOARCH+".s"); err != nil {
		t.Fatal(err)
	}
	binary, err := sources.Build(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	control := exec.Command(binary, "-test.run=^TestLockChecks$", "-test.v")
	control.Dir = root
	if out, err := control.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestLockChecks ") {
		t.Fatalf("the checks see nothing: %v\n%s", err, out)
	}
	cmd := exec.Command(binary, "-test.skip=Alloc|TestGrowth|VetOnce", "-test.timeout=5m")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GVSTREAM_SIM_RUNS=100")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%d locks, %d methods that want one, %d calls of callbacks", r.locks, r.methods, r.callbacks)
}

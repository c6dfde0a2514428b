package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"hsm-signer/integration/must"
)

// The product is the module in the parent directory. The result cache of go test does not see
// changes in it, so run these tests with -count=1.
const (
	product     = "hsm-signer"
	productRoot = ".."
)

// layers are the product's top directories, each with the layers that it may import. A package
// below a directory belongs to its layer.
var layers = map[string][]string{
	"policy": nil,
	"issuer": {"policy"},
	"hsm":    nil,
	"kube":   {"policy"},
	"docs":   nil,
	forTests: nil,
	"cmd":    {"policy", "issuer", "hsm", "kube", "docs"},
}

// forTests is the layer of what helps the tests of all layers.
const forTests = "internal"

// innerPackages are packages inside others, each with the packages of the product that it may
// import, all relative to the product: the status page only shows what it is given, and the parts
// of the controller and the kinds of request do not know the controller.
var innerPackages = map[string][]string{
	"hsm/ckr":           nil,
	"hsm/cryptoki":      {"hsm/ckr", "hsm/csign"},
	"hsm/csign":         nil,
	"hsm/pkcs11uri":     nil,
	"policy/strictyaml": nil,
	"kube/apifault":     nil,
	"kube/clientset":    nil,
	"kube/pace":         nil,
	"kube/lease":        {"kube/apifault", "kube/clientset"},
	"kube/access":       {"kube/clientset", "kube/lease", "kube/trustbundle"},
	"kube/request":      {"policy"},
	"kube/trustbundle":  {"kube/clientset"},
	"kube/podcert":      {"kube/clientset", "kube/request", "policy"},
	"kube/csr":          {"kube/clientset", "kube/request", "policy", "policy/pkcs10"},

	command + "anchors": {command + "poll", command + "rotation", "issuer", "kube/trustbundle"},
	command + "exit":    {"hsm"},
	command + "expiry": {command + "poll", "policy", "issuer/journal", "kube",
		"kube/clientset"},
	command + "fingerprint": nil,
	command + "health": {command + "credential", command + "poll", command + "rotation", "hsm",
		"issuer", "issuer/journal", "kube"},
	command + "keyring":  {command + "poll", "hsm", "issuer"},
	command + "listener": nil,
	command + "logging":  {command + "terminal"},
	command + "poll":     nil,
	command + "reload": {command + "config", command + "judge", command + "metrics",
		command + "poll", "issuer", "policy"},
	command + "rollback": {"issuer/journal"},
	command + "rotation": {"issuer"},
	command + "sdnotify": {command + "poll"},
	command + "setting": {command + "exit", command + "trustedfile", "policy",
		"policy/strictyaml"},
	command + "status": nil,
	command + "stuck": {command + "poll", "policy", "issuer/journal", "kube",
		"kube/clientset"},
	command + "terminal":    nil,
	command + "trustedfile": nil,
}

// command is where the packages of the command are.
const command = "cmd/hsm-signer/internal/"

// libraries are libraries that only some layers may use, with these layers.
var libraries = map[string][]string{
	"github.com/eclipse-keypont/crypto11": {"hsm"},
	"github.com/miekg/pkcs11":             {"hsm"},
	"github.com/spf13/cobra":              {"cmd"},
	"k8s.io":                              {"kube", "cmd"},
	"sigs.k8s.io":                         {"kube", "cmd"},
}

// wires is the layer that connects the others. It depends on all their libraries, so only its own
// imports count.
const wires = "cmd"

// inputAndOutput are the packages that a layer without input and output must not import.
var inputAndOutput = []string{"os", "os/exec", "io/ioutil", "syscall", "net", "net/http", "net/rpc",
	"net/smtp"}

// servers are modules that only the tests need, since they are too large for the product.
var servers = []string{"k8s.io/kubernetes", "go.etcd.io"}

// A goPackage is a package of the product, without its tests.
type goPackage struct {
	ImportPath string
	Doc        string   // first sentence of its comment
	Imports    []string // by the package itself
	Deps       []string // all packages that it depends on
}

// layer returns the layer of the package.
func (p goPackage) layer() string {
	layer, _, _ := strings.Cut(strings.TrimPrefix(p.ImportPath, product+"/"), "/")
	return layer
}

// helpsTests reports whether only tests may import the package.
func (p goPackage) helpsTests() bool { return slices.Contains(p.Imports, "testing") }

var listed = sync.OnceValues(list)

func list() ([]goPackage, error) {
	out, err := run("go", "list", "-json=ImportPath,Doc,Imports,Deps", "./...")
	if err != nil {
		return nil, err
	}
	var all []goPackage
	decoder := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
}

// run runs a command in the product's directory and returns what it prints.
func run(name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = productRoot
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", cmd, err, errs.Bytes())
	}
	return out, nil
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	return must.Get(listed())(t)
}

// within reports whether an import path is root or below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// Every package belongs to a layer, and every layer has packages.
func TestImportsLayersAreComplete(t *testing.T) {
	found := map[string]bool{}
	for _, p := range packages(t) {
		found[p.layer()] = true
		if _, known := layers[p.layer()]; !known {
			t.Errorf("%s is in no layer: add %q to layers, with what it may import", p.ImportPath,
				p.layer())
		}
	}
	for layer := range layers {
		if !found[layer] {
			t.Errorf("the layer %s has no packages", layer)
		}
	}
}

func TestImportsBetweenLayers(t *testing.T) {
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			if !within(path, product) {
				continue
			}
			layer := goPackage{ImportPath: path}.layer()
			if layer == forTests && p.helpsTests() {
				continue
			}
			if layer != p.layer() && !slices.Contains(layers[p.layer()], layer) {
				t.Errorf("%s imports %s; of the other layers %s may import %q",
					p.ImportPath, path, p.layer(), layers[p.layer()])
			}
		}
	}
}

func TestImportsOfInnerPackages(t *testing.T) {
	found := 0
	for _, p := range packages(t) {
		allowed, inner := innerPackages[strings.TrimPrefix(p.ImportPath, product+"/")]
		if !inner {
			continue
		}
		found++
		for _, path := range p.Imports {
			path, own := strings.CutPrefix(path, product+"/")
			if own && !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s; it may import %q", p.ImportPath, path, allowed)
			}
		}
	}
	if found != len(innerPackages) {
		t.Errorf("%d of %d inner packages exist", found, len(innerPackages))
	}
}

// The controller works on any kind of request, so it imports none.
func TestImportsOfController(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != product+"/kube" {
			continue
		}
		for _, path := range p.Imports {
			if path == product+"/kube/csr" || within(path, "k8s.io/api/certificates") {
				t.Errorf("%s imports %s; only a kind of request may", p.ImportPath, path)
			}
		}
	}
}

// The program links no API group that it does not use: client-go's Clientset links all of them,
// and so does its leader election.
func TestImportsOfProgramAreFew(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != product+"/cmd/hsm-signer" {
			continue
		}
		for _, path := range p.Deps {
			if within(path, "k8s.io/client-go/kubernetes") {
				t.Errorf("%s depends on %s: use kube/clientset", p.ImportPath, path)
			}
		}
	}
}

// Templates look up methods by name, for which the linker keeps every exported method of the
// program. cobra has them, which the linker drops as long as nothing sets one.
func TestImportsOfTemplates(t *testing.T) {
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			if path == "text/template" || path == "html/template" {
				t.Errorf("%s imports %s, which makes the program 8 MiB larger", p.ImportPath, path)
			}
		}
	}
}

// No dependency of a layer may bring in a library of another layer.
func TestImportsOfLibraries(t *testing.T) {
	for _, p := range packages(t) {
		paths, how := p.Deps, "depends on"
		if p.layer() == wires {
			paths, how = p.Imports, "imports"
		}
		for library, owners := range libraries {
			inside := func(path string) bool { return within(path, library) }
			if i := slices.IndexFunc(paths, inside); i >= 0 && !slices.Contains(owners, p.layer()) {
				t.Errorf("%s %s %s; only %q may use %s", p.ImportPath, how, paths[i], owners,
					library)
			}
		}
	}
}

func TestImportsOfPolicyDoNoInputOrOutput(t *testing.T) {
	for _, p := range packages(t) {
		if p.layer() != "policy" || p.helpsTests() {
			continue
		}
		for _, path := range p.Imports {
			if slices.Contains(inputAndOutput, path) {
				t.Errorf("%s imports %s; policy does no input or output", p.ImportPath, path)
			}
		}
	}
}

func TestImportsOfTestHelpers(t *testing.T) {
	helpers := map[string]bool{}
	for _, p := range packages(t) {
		helpers[p.ImportPath] = p.helpsTests()
	}
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			if helpers[path] && !p.helpsTests() {
				t.Errorf("%s imports %s, which is only for tests", p.ImportPath, path)
			}
		}
	}
}

func TestImportsHavePackageComments(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestImportsNoServers(t *testing.T) {
	out := must.Get(run("go", "mod", "edit", "-json"))(t)
	var file struct{ Require []struct{ Path string } }
	must.OK(t, json.Unmarshal(out, &file))
	if len(file.Require) == 0 {
		t.Error("go.mod requires no modules")
	}
	for _, required := range file.Require {
		for _, server := range servers {
			if within(required.Path, server) {
				t.Errorf("the product's go.mod requires %s", required.Path)
			}
		}
	}
}

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

// The product is the module in the directory above. What go test keeps of earlier runs does
// not depend on it: only with -count=1 is it the product of now that is looked at.
const (
	product     = "hsm-signer"
	productRoot = ".."
)

// rooms are the product's, each with those that it may import. An inner room is
// of the room that it is in.
var rooms = map[string][]string{
	"policy": nil,
	"issuer": {"policy"},
	"hsm":    nil,
	"kube":   {"policy"},
	"cmd":    {"policy", "issuer", "hsm", "kube"},
}

// innerRooms are those of the command, each with the rooms, and the inner ones, that it may import: the page only shows
// what it is given.
var innerRooms = map[string][]string{
	product + "/cmd/hsm-signer/internal/status":      nil,
	product + "/cmd/hsm-signer/internal/trustedfile": nil,
	product + "/cmd/hsm-signer/internal/listener":    nil,
	product + "/cmd/hsm-signer/internal/expiry":      {product + "/policy", product + "/issuer/journal", product + "/kube"},
	product + "/cmd/hsm-signer/stuck":                {product + "/policy", product + "/issuer/journal", product + "/kube"},
	product + "/cmd/hsm-signer/heal":                 {product + "/cmd/hsm-signer/stuck", product + "/kube"},
}

// libraries are those that not every room may know, with the rooms that may.
var libraries = map[string][]string{
	"github.com/eclipse-keypont/crypto11": {"hsm"},
	"github.com/miekg/pkcs11":             {"hsm"},
	"github.com/spf13/cobra":              {"cmd"},
	"k8s.io":                              {"kube", "cmd"},
	"sigs.k8s.io":                         {"kube", "cmd"},
}

// wires is the room that has the others put in: what it is built from is theirs
// too, and only what it imports itself is its own.
const wires = "cmd"

// inputAndOutput is what a room that does none does not import itself.
var inputAndOutput = []string{"os", "os/exec", "io/ioutil", "syscall", "net", "net/http", "net/rpc", "net/smtp"}

// servers are too heavy for the product; the tests alone need them.
var servers = []string{"k8s.io/kubernetes", "go.etcd.io"}

// A goPackage is one of the product's, without its tests.
type goPackage struct {
	ImportPath string
	Doc        string   // first sentence of its comment
	Imports    []string // by the package itself
	Deps       []string // all that it is built from
}

// room is the room that the package is in.
func (p goPackage) room() string {
	room, _, _ := strings.Cut(strings.TrimPrefix(p.ImportPath, product+"/"), "/")
	return room
}

// helpsTests tells whether the package is there for tests alone.
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
	all, err := listed()
	must.OK(t, err)
	return all
}

// within tells whether an import path is root or below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// A room that nobody drew has no arrows that could be held, and one that is not
// there holds them all.
func TestHouseHasTheRoomsThatWereDrawn(t *testing.T) {
	found := map[string]bool{}
	for _, p := range packages(t) {
		found[p.room()] = true
		if _, drawn := rooms[p.room()]; !drawn {
			t.Errorf("%s is in no room: say in rooms what %q may import", p.ImportPath, p.room())
		}
	}
	for room := range rooms {
		if !found[room] {
			t.Errorf("the room %s is empty", room)
		}
	}
}

func TestHouseRoomsImportOnlyThoseTheyMay(t *testing.T) {
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			if !within(path, product) {
				continue
			}
			room := goPackage{ImportPath: path}.room()
			if room != p.room() && !slices.Contains(rooms[p.room()], room) {
				t.Errorf("%s imports %s; of the other rooms %s may import %q", p.ImportPath, path, p.room(), rooms[p.room()])
			}
		}
	}
}

func TestHouseInnerRoomsImportOnlyThoseTheyMay(t *testing.T) {
	found := 0
	for _, p := range packages(t) {
		allowed, inner := innerRooms[p.ImportPath]
		if !inner {
			continue
		}
		found++
		for _, path := range p.Imports {
			if within(path, product) && !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s; it may import %q", p.ImportPath, path, allowed)
			}
		}
	}
	if found != len(innerRooms) {
		t.Errorf("%d of %d inner rooms are there", found, len(innerRooms))
	}
}

// Nothing that a room is built from may bring in a library that is not the room's.
func TestHouseLibrariesStayInTheirRooms(t *testing.T) {
	for _, p := range packages(t) {
		paths, how := p.Deps, "is built from"
		if p.room() == wires {
			paths, how = p.Imports, "imports"
		}
		for library, owners := range libraries {
			inside := func(path string) bool { return within(path, library) }
			if i := slices.IndexFunc(paths, inside); i >= 0 && !slices.Contains(owners, p.room()) {
				t.Errorf("%s %s %s; %s is for %q alone", p.ImportPath, how, paths[i], library, owners)
			}
		}
	}
}

func TestHousePolicyDoesNoInputOrOutput(t *testing.T) {
	for _, p := range packages(t) {
		if p.room() != "policy" || p.helpsTests() {
			continue
		}
		for _, path := range p.Imports {
			if slices.Contains(inputAndOutput, path) {
				t.Errorf("%s imports %s; policy does no input or output", p.ImportPath, path)
			}
		}
	}
}

func TestHouseKeepsTestHelpersOut(t *testing.T) {
	helpers := map[string]bool{}
	for _, p := range packages(t) {
		helpers[p.ImportPath] = p.helpsTests()
	}
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			if helpers[path] && !p.helpsTests() {
				t.Errorf("%s imports %s, which is for tests alone", p.ImportPath, path)
			}
		}
	}
}

func TestHousePackagesHaveComments(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestHouseProductRequiresNoServers(t *testing.T) {
	out, err := run("go", "mod", "edit", "-json")
	must.OK(t, err)
	var file struct{ Require []struct{ Path string } }
	must.OK(t, json.Unmarshal(out, &file))
	if len(file.Require) == 0 {
		t.Error("go.mod requires nothing at all")
	}
	for _, required := range file.Require {
		for _, server := range servers {
			if within(required.Path, server) {
				t.Errorf("the product's go.mod requires %s", required.Path)
			}
		}
	}
}

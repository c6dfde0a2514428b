package hsm

import (
	"context"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// A Proof is what a token says of the attributes of a private key that together mean
// that it cannot leave (PKCS#11 v2.40, section 4.9). It is the module's claim:
// no software can prove more.
type Proof struct{ Attributes []Attribute }

// An Attribute is one attribute, what it must be and what it is.
type Attribute struct {
	Name  string
	Want  bool
	Is    bool
	Known bool // false: the token would not say
	Must  bool // false: worth a warning, no more
}

var proofAttributes = []struct {
	kind uint
	name string
	want bool
	must bool
}{
	{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", true, true},
	{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", false, true},
	{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", true, true},
	{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", true, true},
	{pkcs11.CKA_PRIVATE, "CKA_PRIVATE", true, true},
	{pkcs11.CKA_SIGN, "CKA_SIGN", true, true},
	{pkcs11.CKA_LOCAL, "CKA_LOCAL", true, false}, // NSS says false of keys that it made itself
}

// prove asks for the attributes of a key one by one. That the token does not know an attribute or will
// not say it is an answer; any other error is a fault.
func (c *connection) prove(ctx context.Context, key pkcs11.ObjectHandle) (Proof, error) {
	var p Proof
	for _, a := range proofAttributes {
		value, err := c.attribute(ctx, key, a.kind)
		if err != nil && !is(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) && !is(err, pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
			return Proof{}, unavailable(err, "read %s of the key", a.name)
		}
		known := err == nil && len(value) == 1
		p.Attributes = append(p.Attributes, Attribute{
			Name: a.name, Want: a.want, Must: a.must, Known: known, Is: known && value[0] != 0,
		})
	}
	return p, nil
}

// Holds reports whether every attribute that must hold does.
func (p Proof) Holds() bool {
	for _, a := range p.Attributes {
		if a.Must && (!a.Known || a.Is != a.Want) {
			return false
		}
	}
	return len(p.Attributes) > 0
}

// Doubtful reports whether an attribute, even one that need not hold, has an unexpected value.
func (p Proof) Doubtful() bool {
	return slices.ContainsFunc(p.Attributes, func(a Attribute) bool { return !a.Known || a.Is != a.Want })
}

// String lists the attributes as the token gives them.
func (p Proof) String() string {
	words := make([]string, 0, len(p.Attributes))
	for _, a := range p.Attributes {
		word := a.Name + "=" + map[bool]string{true: "1", false: "0"}[a.Is]
		switch {
		case !a.Known:
			word = a.Name + " unknown"
		case a.Is != a.Want:
			word += " (should be " + map[bool]string{true: "1", false: "0"}[a.Want] + ")"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

//go:build cgo

package hsm

import (
	"context"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

// KeyAttributes are the attributes of a private key that together mean that it cannot leave its
// token (PKCS#11 v2.40, section 4.9). They are the module's claim: no software can prove more.
type KeyAttributes struct{ Attributes []Attribute }

// An Attribute is one attribute, with the value it should have and the one it has.
type Attribute struct {
	Name  string
	Want  bool
	Is    bool
	Known bool // false: the token does not say
	Must  bool // false: a wrong value is only worth a warning
}

var requiredAttributes = []struct {
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
	// NSS returns false for keys that it created itself
	{pkcs11.CKA_LOCAL, "CKA_LOCAL", true, false},
}

// attributes reads the attributes of a key one by one. An attribute that the token does not know or
// does not reveal is not an error.
func (c *connection) attributes(ctx context.Context,
	key pkcs11.ObjectHandle) (KeyAttributes, error) {
	var p KeyAttributes
	for _, a := range requiredAttributes {
		value, err := c.Attribute(ctx, key, a.kind)
		if err != nil && !ckr.Is(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) &&
			!ckr.Is(err, pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
			return KeyAttributes{}, unavailable(err, "read %s of the key", a.name)
		}
		known := err == nil && len(value) == 1
		p.Attributes = append(p.Attributes, Attribute{
			Name: a.name, Want: a.want, Must: a.must, Known: known, Is: known && value[0] != 0,
		})
	}
	return p, nil
}

// Holds reports whether every attribute that must have its value has it.
func (p KeyAttributes) Holds() bool {
	for _, a := range p.Attributes {
		if a.Must && (!a.Known || a.Is != a.Want) {
			return false
		}
	}
	return len(p.Attributes) > 0
}

// Doubtful reports whether any attribute, required or not, lacks the value that it should have.
func (p KeyAttributes) Doubtful() bool {
	return slices.ContainsFunc(p.Attributes,
		func(a Attribute) bool { return !a.Known || a.Is != a.Want })
}

// String lists the attributes as the token returns them.
func (p KeyAttributes) String() string {
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

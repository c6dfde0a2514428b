package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// BlockedKeys are public keys for which nothing is granted, by any rule. The nil value blocks none.
type BlockedKeys struct {
	keys map[string]bool // the SHA-256 of the SubjectPublicKeyInfo, in lower-case hex
	hash string          // of the text
}

// ParseBlockedKeys reads a list of keys: on each line the SHA-256, in hex, of a
// SubjectPublicKeyInfo in DER. Empty lines are skipped, and so is what follows a #. The error lists
// every bad line with its number.
func ParseBlockedKeys(text []byte) (*BlockedKeys, error) {
	sum := sha256.Sum256(text)
	blocked := &BlockedKeys{keys: map[string]bool{}, hash: hex.EncodeToString(sum[:])}
	var bad []string
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		entry, _, _ := strings.Cut(line, "#")
		entry = strings.ToLower(strings.TrimSpace(entry))
		switch key, err := hex.DecodeString(entry); {
		case entry == "":
		case err != nil || len(key) != sha256.Size:
			bad = append(bad, fmt.Sprintf("line %d: is not the SHA-256 of a key: write 64 "+
				"hexadecimal digits, and a comment after a #", number))
		default:
			blocked.keys[entry] = true
		}
	}
	switch {
	case len(bad) > 0:
		return nil, fmt.Errorf("the list of blocked keys has %d mistake(s):\n  %s", len(bad),
			strings.Join(bad, "\n  "))
	case len(blocked.keys) == 0:
		return nil, fmt.Errorf("the list of blocked keys is empty; to block none, name no list")
	}
	return blocked, nil
}

// Len returns how many keys are blocked.
func (b *BlockedKeys) Len() int {
	if b == nil {
		return 0
	}
	return len(b.keys)
}

// refuse returns the reason for which a request for a blocked key is refused, and false for any
// other.
func (b *BlockedKeys) refuse(r *Request) (Reason, bool) {
	if b == nil || !b.keys[r.publicKeySHA256()] {
		return Reason{}, false
	}
	return Reason{
		Code: KeyNotAllowed, Rule: ruleBlockedKeys, Field: "request.publicKey",
		Message: "is blocked: the SHA-256 of its SubjectPublicKeyInfo, " + r.publicKeySHA256() +
			", is on the list of blocked keys; make a new key",
	}, true
}

package policy_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"hsm-signer/internal/must"
	"hsm-signer/policy"
	"hsm-signer/policy/pkcs10/pkcs10test"
)

// keyOf returns a request's PEM, and the SHA-256 of its key as openssl and sha256sum print it.
func keyOf(t *testing.T) (pem []byte, sum string) {
	t.Helper()
	key := pkcs10test.NewKey(t)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	must.OK(t, err)
	hash := sha256.Sum256(spki)
	return pkcs10test.Request{Key: key,
		DNSNames: []string{"typha-client"}}.PEM(t), hex.EncodeToString(hash[:])
}

// blocking is the built-in policy with a list of blocked keys.
func blocking(t *testing.T, list string) *policy.Policy {
	t.Helper()
	blocked, err := policy.ParseBlockedKeys([]byte(list))
	must.OK(t, err)
	text, _ := policy.BuiltIn("calico")
	return must.Value(policy.Parse(text,
		policy.Options{ClusterDomain: "cluster.local", MaxLifetime: 8760 * time.Hour,
			BlockedKeys: blocked}))(t)
}

func TestBlockedKeysAreRefused(t *testing.T) {
	pem, sum := keyOf(t)
	other, otherSum := keyOf(t)
	node := newAsker("calico-system", "calico-node", "typha-client")
	node.ips = nil
	requireGrant(t, builtIn(t, "calico").Decide(node.requestOf(pem)))
	for _, list := range []string{sum,
		"# leaked in May\n\n" + otherSum[1:] + "0\n" + strings.ToUpper(sum) + " # node-1\r\n"} {
		p := blocking(t, list)
		requireRefusal(t, p.Decide(node.requestOf(pem)), policy.KeyNotAllowed,
			"rule blocked-keys: request.publicKey is blocked")
		requireGrant(t, p.Decide(node.requestOf(other)))
		stranger := newAsker("shop", "till", "till")
		v := p.Decide(stranger.requestOf(pem)).(*policy.Refusal)
		if v.Code() != policy.RequesterNotAllowed || strings.Contains(v.String(), "blocked") {
			t.Errorf("a stranger is told: %s", v)
		}
	}
}

// Another list makes another policy, also where no other key is blocked; without one, the hash is
// what it was.
func TestBlockedKeysArePartOfTheHash(t *testing.T) {
	_, sum := keyOf(t)
	hashes := map[string]bool{builtIn(t, "calico").Hash(): true}
	for _, list := range []string{sum, sum + "\n"} {
		hashes[blocking(t, list).Hash()] = true
	}
	if len(hashes) != 3 {
		t.Errorf("%d hashes", len(hashes))
	}
}

func TestMistakesInBlockedKeys(t *testing.T) {
	_, sum := keyOf(t)
	list := strings.Join([]string{sum, sum[1:], "# fine", sum + " " + sum, "sha256:" + sum,
		strings.Replace(sum, sum[:1], "g", 1)}, "\n")
	_, err := policy.ParseBlockedKeys([]byte(list))
	if err == nil {
		t.Fatal("taken")
	}
	lines := strings.Split(err.Error(), "\n  ")
	for i, want := range []string{"has 4 mistake(s)", "line 2: ", "line 4: ", "line 5: ",
		"line 6: "} {
		if len(lines) != 5 || !strings.Contains(lines[i], want) {
			t.Errorf("%q; want %q", lines, want)
		}
	}
	for _, list := range []string{"", "\n \n", "# nothing\n"} {
		if _, err := policy.ParseBlockedKeys([]byte(list)); err == nil ||
			!strings.Contains(err.Error(), "is empty") {
			t.Errorf("%q: %v", list, err)
		}
	}
}

func TestConditionsSeeTheHashOfTheKey(t *testing.T) {
	pem, sum := keyOf(t)
	other, _ := keyOf(t)
	text, _ := policy.BuiltIn("calico")
	p := parse(t, fmt.Sprintf("%s    conditions:\n      - {that: request.publicKeySHA256 == %q, "+
		"message: another key}\n", strings.Split(string(text), "    budget:")[0], sum))
	node := newAsker("calico-system", "calico-node", "typha-client")
	node.ips = nil
	requireGrant(t, p.Decide(node.requestOf(pem)))
	requireRefusal(t, p.Decide(node.requestOf(other)), policy.ConditionNotMet, "another key")
}

package issuer

import (
	"crypto/sha256"
	"sync"
)

// mostRecent bounds how many certificates are remembered, with about 150 bytes each.
const mostRecent = 20_000

// recent remembers the certificates that this process has recorded in the journal, until each is
// looked at. Its zero value is empty. It is safe for concurrent use.
type recent struct {
	mu sync.Mutex
	of map[string][sha256.Size]byte // SHA-256 of the DER, by the UID of the request
}

// add remembers a certificate that is in the journal, unless there are too many.
func (r *recent) add(uid string, der []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string][sha256.Size]byte{}
	}
	if len(r.of) < mostRecent {
		r.of[uid] = sha256.Sum256(der)
	}
}

// take forgets the certificate of the request, and reports whether it is this one.
func (r *recent) take(uid string, der []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum, known := r.of[uid]
	delete(r.of, uid)
	return known && sum == sha256.Sum256(der)
}

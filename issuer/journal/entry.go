package journal

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hsm-signer/policy"
)

// A Kind is a kind of line.
type Kind string

// The kinds of line.
const (
	KindOpened    Kind = "opened"
	KindIntent    Kind = "intent"
	KindSigned    Kind = "signed"
	KindPublished Kind = "published"
	KindOrphaned  Kind = "orphaned"
	// KindUnconfirmed marks a certificate that its request may have taken.
	KindUnconfirmed Kind = "unconfirmed"
	KindProbe       Kind = "probe"
	KindCheckpoint  Kind = "checkpoint"
	KindRollback    Kind = "rollback"
	KindRotation    Kind = "rotation"
)

// An Entry is what a line says in addition to its place in the chain: an [Opened], [Intent],
// [Signed], [Published], [Orphaned], [Unconfirmed], [Probe], [Checkpoint], [Rollback] or
// [Rotation].
type Entry interface {
	Kind() Kind
	check() error // what can be told from the entry alone
}

// Opened says who writes the lines that follow. The journal writes it by itself.
type Opened struct {
	Journal  ID     `json:"journal"`
	Version  string `json:"version"`
	CASHA256 string `json:"caSHA256"` // of the CA's certificate in DER, hex
	// of the next CA's certificate; empty if none is configured
	NextCASHA256 string `json:"nextCASHA256,omitempty"`
	Host         string `json:"host"`
	PID          int    `json:"pid"`
	// what had broken the journal, when it is opened again by the same process
	Resumed  string  `json:"resumed,omitempty"`
	Repaired *Repair `json:"repaired,omitempty"`
}

// A Repair records bytes behind the last whole line, as a power cut leaves them. They were
// in no line that anyone was told is written.
type Repair struct {
	File string `json:"file"` // in which they were found
	// at which they began, from 1; 0 when the file was not read from its beginning
	Line    int    `json:"line"`
	Bytes   int    `json:"bytes"`   // how many
	SHA256  string `json:"sha256"`  // of them, hex
	MovedTo string `json:"movedTo"` // the file that holds them now
}

// String is for the log.
func (r *Repair) String() string {
	return fmt.Sprintf("%d bytes that are no whole line were found in %s, line %d, and moved to %s",
		r.Bytes, r.File, r.Line, r.MovedTo)
}

// An Intent says what is about to be signed.
type Intent struct {
	UID           string           `json:"uid"`  // of the API object
	Name          string           `json:"name"` // of the API object
	Signer        string           `json:"signer"`
	Requester     policy.Requester `json:"requester"`
	RequestSHA256 string           `json:"requestSHA256"` // of the PKCS#10 request in DER, hex
	Rule          string           `json:"rule"`          // that grants
	PolicyHash    string           `json:"policyHash"`
	Names         []string         `json:"names,omitempty"` // subject and names, for people to read
	// see [FormatSerial]; it begins with the journal's ID
	Serial string `json:"serial"`
	TBS    []byte `json:"tbs"` // the to-be-signed certificate, DER
	// Whether the request may get a new certificate, since its former one was orphaned.
	Anew bool `json:"anew,omitempty"`
}

// OfPod reports whether the request is a PodCertificateRequest, which kubelet makes, and makes
// again before the certificate ends. Its name is NAMESPACE/NAME; no other has a slash.
func (i Intent) OfPod() bool { return strings.Contains(i.Name, "/") }

// Signed is the certificate that came of an intent. [Writer.Append] takes only what [NewSigned]
// made.
type Signed struct {
	UID         string `json:"uid"`
	Serial      string `json:"serial"`
	Certificate []byte `json:"certificate"` // DER

	verifiedBy *x509.Certificate // the CA whose signature was verified; nil if none was
}

// NewSigned verifies that the CA has signed the certificate in DER, and returns the line that
// records it for the request. A new signature is verified here and nowhere else. [Writer.Append]
// compares its bytes with those of the intent.
func NewSigned(uid string, der []byte, ca *x509.Certificate) (Signed, error) {
	cert, err := checkSignature(der, []*x509.Certificate{ca})
	if err != nil {
		return Signed{}, err
	}
	return Signed{UID: uid, Serial: FormatSerial(cert.SerialNumber), Certificate: der,
		verifiedBy: ca}, nil
}

// Published says that the API server took the certificate. It may be said again when the API server
// took it again.
type Published struct {
	UID    string `json:"uid"`
	Serial string `json:"serial"`
}

// Orphaned says that an intent will not be signed, or a certificate not be published, and why. If
// the request comes back, a certificate can be published anyway.
type Orphaned struct {
	UID    string `json:"uid"`
	Serial string `json:"serial"`
	Why    string `json:"why"`
}

// mayBeDelivered reports whether the client may hold the certificate anyway: earlier
// versions wrote these reasons without knowing whether the API server had taken it.
func (o Orphaned) mayBeDelivered() bool {
	return o.Why == "the request is gone" ||
		o.Why == "the request has a certificate that is not this one"
}

// Unconfirmed says that a certificate was signed, and that nobody can find out any more whether
// the API server took it: treat it as delivered. If the request comes back, the certificate is
// published again.
type Unconfirmed struct {
	UID    string `json:"uid"`
	Serial string `json:"serial"`
	Why    string `json:"why"`
}

// When a test signature is made.
const (
	ProbeBegin = "begin" // with a new connection to the token
	ProbeReady = "ready" // when someone asks whether the token can sign
)

// A Probe says that the CA's key is about to make a test signature, over a fixed text and never a
// caller's.
type Probe struct {
	When string `json:"when"` // ProbeBegin or ProbeReady
	Text string `json:"text"` // what is signed
	// of the key's SubjectPublicKeyInfo in DER, hex; empty: the key of the CA in caSHA256 of the
	// [Opened] before
	KeySHA256 string `json:"keySHA256,omitempty"`
}

// A Checkpoint is a signature over the head of the journal by a key of its own.
type Checkpoint struct {
	HeadSeq    uint64 `json:"headSeq"`
	HeadSHA256 Hash   `json:"headSHA256"`
	KeySHA256  string `json:"keySHA256"` // of the key's SubjectPublicKeyInfo in DER, hex
	Algorithm  string `json:"algorithm"` // as [x509.SignatureAlgorithm.String] writes it
	Signature  []byte `json:"signature"` // over [CheckpointText]
}

// A Rollback says that a person accepted that the journal does not have a line which a witness has
// seen.
type Rollback struct {
	HeadSeq    uint64 `json:"headSeq"`
	HeadSHA256 Hash   `json:"headSHA256"`
}

// WitnessText is what the key of the checkpoints signs for a witness that others can write to.
func WitnessText(id ID, head Head) []byte {
	return fmt.Appendf(nil, "hsm-signer witness\njournal %s\nline %d\nsha256 %s\n", id, head.Seq,
		head.SHA256)
}

// CheckpointText is what a checkpoint's signature is over.
func CheckpointText(id ID, head Head) []byte {
	return fmt.Appendf(nil, "hsm-signer checkpoint\njournal %s\nline %d\nsha256 %s\n", id, head.Seq,
		head.SHA256)
}

func (Opened) Kind() Kind      { return KindOpened }      // Kind is [KindOpened].
func (Intent) Kind() Kind      { return KindIntent }      // Kind is [KindIntent].
func (Signed) Kind() Kind      { return KindSigned }      // Kind is [KindSigned].
func (Published) Kind() Kind   { return KindPublished }   // Kind is [KindPublished].
func (Orphaned) Kind() Kind    { return KindOrphaned }    // Kind is [KindOrphaned].
func (Unconfirmed) Kind() Kind { return KindUnconfirmed } // Kind is [KindUnconfirmed].
func (Probe) Kind() Kind       { return KindProbe }       // Kind is [KindProbe].
func (Checkpoint) Kind() Kind  { return KindCheckpoint }  // Kind is [KindCheckpoint].
func (Rollback) Kind() Kind    { return KindRollback }    // Kind is [KindRollback].

func (o Opened) check() error { return o.Journal.check() }

func (i Intent) check() error {
	if i.UID == "" {
		return errNoUID
	}
	cert, err := ParseTBS(i.TBS)
	if err != nil {
		return err
	}
	if serial := FormatSerial(cert.SerialNumber); serial != i.Serial {
		return fmt.Errorf("the serial number is %s, but that of the to-be-signed certificate is %s",
			i.Serial, serial)
	}
	return nil
}

func (s Signed) check() error {
	if s.UID == "" {
		return errNoUID
	}
	_, err := tbsOf(s.Certificate)
	return err
}

func (p Published) check() error   { return needUID(p.UID) }
func (o Orphaned) check() error    { return needUID(o.UID) }
func (u Unconfirmed) check() error { return needUID(u.UID) }

func (p Probe) check() error {
	if p.When != ProbeBegin && p.When != ProbeReady {
		return fmt.Errorf("%q is not when a test signature is made", p.When)
	}
	return nil
}

func (c Checkpoint) check() error {
	if algorithmNamed(c.Algorithm) == x509.UnknownSignatureAlgorithm {
		return fmt.Errorf("%q is not a signature algorithm", c.Algorithm)
	}
	return nil
}

func (r Rollback) check() error {
	if r.HeadSeq == 0 {
		return errors.New("no line has the number 0")
	}
	return nil
}

var errNoUID = errors.New("the request has no UID")

func needUID(uid string) error {
	if uid == "" {
		return errNoUID
	}
	return nil
}

// requestOf returns the UID of the request that an entry is about, and "" when it is about none.
func requestOf(e Entry) string {
	switch e := e.(type) {
	case Intent:
		return e.UID
	case Signed:
		return e.UID
	case Published:
		return e.UID
	case Orphaned:
		return e.UID
	case Unconfirmed:
		return e.UID
	}
	return ""
}

func decodeEntry(kind string, body []byte) (Entry, error) {
	switch Kind(kind) {
	case KindOpened:
		return decode[Opened](body)
	case KindIntent:
		return decode[Intent](body)
	case KindSigned:
		return decode[Signed](body)
	case KindPublished:
		return decode[Published](body)
	case KindOrphaned:
		return decode[Orphaned](body)
	case KindUnconfirmed:
		return decode[Unconfirmed](body)
	case KindProbe:
		return decode[Probe](body)
	case KindCheckpoint:
		return decode[Checkpoint](body)
	case KindRollback:
		return decode[Rollback](body)
	case KindRotation:
		return decode[Rotation](body)
	}
	return nil, fmt.Errorf("%q is not a kind of line that this version knows", kind)
}

func decode[E Entry](body []byte) (Entry, error) {
	var e E
	err := json.Unmarshal(body, &e)
	return e, err
}

// encodeEntry returns the entry as it will be read back, in which bytes that are not UTF-8 become
// U+FFFD, and its JSON.
func encodeEntry(e Entry) (Entry, []byte, error) {
	body, err := json.Marshal(e)
	if err != nil || !bytes.Contains(body, []byte(`\ufffd`)) {
		return e, body, err
	}
	if e, err = decodeEntry(string(e.Kind()), body); err != nil {
		return nil, nil, err
	}
	body, err = json.Marshal(e)
	return e, body, err
}

// An ID is a journal's own: eight hexadecimal digits, random, of which the first byte is between 01
// and 7f. The serial numbers of the journal begin with it.
type ID string

func (id ID) check() error {
	b, err := hex.DecodeString(string(id))
	if err != nil || len(b) != idBytes || b[0] == 0 || b[0] > 0x7f ||
		strings.ToLower(string(id)) != string(id) {
		return fmt.Errorf("%q is not the id of a journal", string(id))
	}
	return nil
}

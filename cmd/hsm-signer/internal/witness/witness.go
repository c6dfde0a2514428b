// Package witness keeps the head of the journal outside the journal: in the lease, in WITNESS_FILE
// and in signed checkpoints. A witness with a head that the journal lacks shows that it was rolled
// back.
package witness

import (
	"cmp"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"hsm-signer/cmd/hsm-signer/internal/poll"
	"hsm-signer/cmd/hsm-signer/internal/rollback"
	"hsm-signer/issuer/journal"
)

// Annotations of the lease, by which the API server is a witness of the head of the journal. Each
// journal has one of its own; the other two are those of earlier versions, and are of the journal
// that leads.
const (
	annotationJournal = "hsm-signer/journal"
	annotationHead    = "hsm-signer/journal-head"
	annotationPrefix  = "hsm-signer/journal."
)

// maxWitnessed is how many journals a witness remembers. A further one replaces the oldest.
const maxWitnessed = 16

// A witnessRecord is what a witness keeps of one journal.
type witnessRecord struct {
	Head   string      `json:"head"`
	Time   time.Time   `json:"time"`             // when it was said
	Place  string      `json:"place,omitempty"`  // the host and STATE_DIR of the journal
	Signed *signedHead `json:"signed,omitempty"` // where there is a key for checkpoints
	// Disputed is a later head that nobody has signed, until a person accepts that it is missing.
	Disputed string `json:"disputed,omitempty"`
}

// A Witness compares the journal with what the lease and WITNESS_FILE have kept of it, and knows
// what to tell them; a [Keeper] tells WITNESS_FILE.
type Witness struct {
	dir    string // of the journal
	place  string
	file   string           // WITNESS_FILE; empty: there is none
	public crypto.PublicKey // of the checkpoint key; nil: there is none, and every head is believed
	logger hclog.Logger
	saving poll.Fault // of WITNESS_FILE

	mu       sync.Mutex
	journal  *journal.Writer              // nil until it is open
	compared map[journal.Head]bool        // that the journal contains
	others   map[string]witnessRecord     // by annotation, as the lease last had them
	kept     map[journal.ID]witnessRecord // as WITNESS_FILE has them
	written  journal.Head                 // the last one in WITNESS_FILE
	signed   *signedHead
	disputed journal.Head // see witnessRecord
	former   string       // the journal that this place had before; empty: none
	lost     journal.Head // the head of it
}

// New returns the witness of the journal in a directory, with WITNESS_FILE, or "" for none, and
// the public half of the checkpoint key, or nil.
func New(dir, file string, public crypto.PublicKey, logger hclog.Logger) *Witness {
	host, _ := os.Hostname() // it only tells places apart
	return &Witness{
		dir: dir, place: host + ":" + dir, file: file, public: public, logger: logger,
		compared: map[journal.Head]bool{}, others: map[string]witnessRecord{},
		kept: map[journal.ID]witnessRecord{},
	}
}

// Opened compares a journal that was just opened with WITNESS_FILE. It returns an error if the file
// cannot be read: the journal is not used then.
func (w *Witness) Opened(j *journal.Writer) error {
	if err := w.compareFile(j); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.journal = j
	return nil
}

// writer returns the journal; nil if it is not open yet.
func (w *Witness) writer() *journal.Writer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.journal
}

// compareFile compares a journal with WITNESS_FILE.
func (w *Witness) compareFile(j *journal.Writer) error {
	if w.file == "" {
		return nil
	}
	text, err := os.ReadFile(w.file)
	if errors.Is(err, fs.ErrNotExist) {
		w.logger.Warn("WITNESS_FILE does not exist yet: nothing shows whether the journal was "+
			"rolled back before", "file", w.file)
		return nil
	}
	kept := map[journal.ID]witnessRecord{}
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		return fmt.Errorf("WITNESS_FILE: read %s: %w; repair it, or move it away if you know "+
			"why it is wrong", w.file, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = kept
	return w.look(j, "WITNESS_FILE", kept)
}

// Heard compares the journal with what the lease says. An error keeps this process from leading.
func (w *Witness) Heard(annotations map[string]string) error {
	j := w.writer()
	if j == nil {
		return errors.New("the journal is not open yet")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	records := map[journal.ID]witnessRecord{}
	clear(w.others)
	for name, text := range annotations {
		id, is := strings.CutPrefix(name, annotationPrefix)
		if !is {
			continue
		}
		var r witnessRecord
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			w.logger.Warn("an annotation of the lease cannot be read", "annotation", name,
				"error", err)
		}
		records[journal.ID(id)] = r
		if journal.ID(id) != j.ID() {
			w.others[name] = r
		}
	}
	// of an earlier version
	if _, is := records[j.ID()]; !is && annotations[annotationJournal] == string(j.ID()) {
		records[j.ID()] = witnessRecord{Head: annotations[annotationHead]}
	}
	if err := w.look(j, "the lease", records); err != nil {
		return err
	}
	return j.RolledBack()
}

// look compares the journal with the records of one witness. The caller must hold mu.
func (w *Witness) look(j *journal.Writer, by string, records map[journal.ID]witnessRecord) error {
	for id, r := range records {
		if head, err := journal.ParseHead(r.Head); err == nil && id != j.ID() &&
			r.Place == w.place {
			w.replaced(j, by, string(id), head)
		}
	}
	own, is := records[j.ID()]
	if !is {
		return nil
	}
	if w.public != nil {
		if own.Signed != nil {
			if err := own.Signed.verify(w.public, j.ID()); err != nil {
				w.logger.Warn("a witness has a signature that is not ours; it is not believed",
					"witness", by, "error", err)
			} else if err := w.believe(j, by, own.Signed.Head); err != nil {
				return err
			}
		}
		return errors.Join(w.doubt(j, by, own.Head), w.doubt(j, by, own.Disputed))
	}
	if own.Signed != nil { // the key was taken out of the configuration since
		return errors.Join(w.believe(j, by, own.Signed.Head), w.believe(j, by, own.Head))
	}
	return w.believe(j, by, own.Head)
}

// missing reports whether the journal does not have a head that a witness says. Faults of the disk
// are errors.
func (w *Witness) missing(j *journal.Writer, text string) (journal.Head, bool, error) {
	head, err := journal.ParseHead(text)
	if text == "" || err != nil || w.compared[head] {
		return head, false, nil
	}
	if err = j.Witnessed(head); err == nil {
		if len(w.compared) > 64 {
			clear(w.compared)
		}
		w.compared[head] = true
		return head, false, nil
	}
	if errors.Is(err, journal.ErrRolledBack) {
		return head, true, nil
	}
	return head, false, err
}

// believe stops the journal if it does not have the head. The caller must hold mu.
func (w *Witness) believe(j *journal.Writer, by, text string) error {
	head, missing, err := w.missing(j, text)
	if missing {
		first := j.RolledBack() == nil
		if j.RollBack(head); first {
			w.logger.Error("THE JOURNAL WAS ROLLED BACK; nothing is signed", "witness", by, "id",
				j.ID(), "witnessed", head.String(), "head", j.Head().String())
		}
	}
	return err
}

// doubt records a head that the journal does not have, and that nobody has signed. The caller
// must hold mu.
func (w *Witness) doubt(j *journal.Writer, by, text string) error {
	head, missing, err := w.missing(j, text)
	if missing && head != w.disputed {
		w.disputed = head
		w.logger.Error("THE JOURNAL MAY HAVE BEEN ROLLED BACK: a witness has a head that it "+
			"does not have, without a signature",
			"witness", by, "id", j.ID(), "witnessed", head.String(), "head", j.Head().String())
	}
	return err
}

// replaced records that this place had another journal. The caller must hold mu.
func (w *Witness) replaced(j *journal.Writer, by, id string, head journal.Head) {
	if w.former == "" && !j.Accepted(head) {
		w.former, w.lost = id, head
		w.logger.Error("THE JOURNAL OF THIS PLACE IS ANOTHER ONE than a witness knows: "+
			"STATE_DIR was emptied or replaced",
			"witness", by, "place", w.place, "was", id, "head", head.String(), "is", j.ID())
	}
}

// Suspicion is what is suspected and does not stop the journal; nil if nothing is.
func (w *Witness) Suspicion() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []error
	if w.disputed.Seq > 0 {
		all = append(all, fmt.Errorf("a witness has the head %s, which this journal does not "+
			"have, without a signature", w.disputed))
	}
	if w.former != "" {
		all = append(all,
			fmt.Errorf("STATE_DIR had the journal %s with the head %s before", w.former, w.lost))
	}
	return errors.Join(all...)
}

// Annotations say what the head of the journal is; nothing while it is not open, or was rolled
// back: then the lease keeps what it knows. An empty value takes the annotation away.
func (w *Witness) Annotations() map[string]string {
	id, r, is := w.record()
	if !is {
		return nil
	}
	text, err := json.Marshal(r)
	if err != nil { // it has only texts and numbers
		return nil
	}
	said := map[string]string{annotationJournal: string(id), annotationHead: r.Head,
		annotationPrefix + string(id): string(text)}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range oldest(w.others, len(w.others)-maxWitnessed+1) {
		said[name] = ""
	}
	return said
}

// A Said is what the lease says of the journal of a replica that has led.
type Said struct {
	ID    journal.ID
	Place string    // the host and STATE_DIR
	Time  time.Time // when it was said
}

// Journals returns what the annotations of the lease say of each journal, by its ID.
func Journals(annotations map[string]string) (all []Said) {
	for name, text := range annotations {
		var r witnessRecord
		id, is := strings.CutPrefix(name, annotationPrefix)
		if is && json.Unmarshal([]byte(text), &r) == nil {
			all = append(all, Said{journal.ID(id), r.Place, r.Time})
		}
	}
	slices.SortFunc(all, func(a, b Said) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Others returns the journals of other replicas that have led since a time, as the lease last said.
func (w *Witness) Others(since time.Time) (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, r := range w.others {
		if r.Time.After(since) {
			ids = append(ids, strings.TrimPrefix(name, annotationPrefix))
		}
	}
	slices.Sort(ids)
	return ids
}

// oldest returns the n records that were said longest ago.
func oldest[K cmp.Ordered](records map[K]witnessRecord, n int) []K {
	var names []K
	for name := range records {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b K) int {
		return cmp.Or(records[a].Time.Compare(records[b].Time), cmp.Compare(a, b))
	})
	return names[:max(0, min(n, len(names)))]
}

// record is what a witness is told now. It returns false if there is nothing to tell.
func (w *Witness) record() (journal.ID, witnessRecord, bool) {
	j := w.writer()
	if j == nil || j.RolledBack() != nil {
		return "", witnessRecord{}, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := witnessRecord{Head: j.Head().String(), Time: time.Now().UTC().Truncate(time.Second),
		Place: w.place, Signed: w.signed}
	if w.disputed.Seq > 0 {
		r.Disputed = w.disputed.String()
	}
	return j.ID(), r, true
}

// errNotSaved stands for every reason.
var errNotSaved = errors.New("not written")

// save writes WITNESS_FILE if the head is another one than it has.
func (w *Witness) save() {
	id, r, is := w.record()
	if !is || w.file == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	head, _ := journal.ParseHead(r.Head) // which record wrote
	if before := w.kept[id]; head == w.written && (before.Signed == r.Signed || r.Signed == nil) {
		return
	}
	w.kept[id] = r
	others := map[journal.ID]witnessRecord{}
	for other, r := range w.kept {
		if other != id {
			others[other] = r
		}
	}
	for _, other := range oldest(others, len(others)-maxWitnessed+1) {
		delete(w.kept, other)
	}
	err := replaceFile(w.file, w.kept)
	if err == nil {
		w.written = head
	}
	var fault error
	if err != nil { // its text names another temporary file each time
		fault = errNotSaved
	}
	if w.saving.Note(fault) == poll.Fails {
		w.logger.Error("WITNESS_FILE cannot be written: nothing keeps the head of the journal",
			"file", w.file, "error", err)
	}
}

// replaceFile writes JSON to a file as a whole, synced.
func replaceFile(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// accept has the journal record what a person has accepted, and continue.
func (w *Witness) accept(ctx context.Context) {
	j := w.writer()
	path := filepath.Join(w.dir, rollback.File)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || j == nil {
		return
	}
	var head journal.Head
	if err == nil {
		head, err = journal.ParseHead(strings.TrimSpace(string(text)))
	}
	if err == nil {
		err = rollback.Record(ctx, j, head)
	}
	if err := errors.Join(err, os.Remove(path)); err != nil {
		w.logger.Error("the acceptance of a rollback was not recorded: run \"hsm-signer audit "+
			"accept-rollback\" again", "file", path, "error", err)
		return
	}
	w.logger.Warn("accepted: the journal does not have a line that a witness has seen", "witnessed",
		head.String())
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disputed == head {
		w.disputed = journal.Head{}
	}
	if w.lost == head {
		w.former, w.lost = "", journal.Head{}
	}
}

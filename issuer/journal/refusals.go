package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// A Refusal is a request that was refused, for the log.
type Refusal struct {
	Time          string   `json:"time"` // set by the log
	UID           string   `json:"uid"`
	Name          string   `json:"name"`
	Signer        string   `json:"signer"`
	Username      string   `json:"username"`
	RequestSHA256 string   `json:"requestSHA256,omitempty"` // of the PKCS#10 request in DER, hex
	PolicyHash    string   `json:"policyHash,omitempty"`
	Reasons       []Reason `json:"reasons"`
}

// A Reason is one of those for which a request was refused.
type Reason struct {
	Rule    string `json:"rule,omitempty"`
	Field   string `json:"field"`
	Message string `json:"message"`
}

// Refusals is a log of refusals: refusals.log and its predecessor refusals.log.1, one JSON object a
// line. It is no part of the journal's chain, is not synced, and cannot stop or break anything: what
// cannot be written, in time or at all, is counted and dropped. It is safe for concurrent use.
type Refusals struct {
	dir     string
	limit   int64
	queue   chan Refusal
	stop    chan struct{}
	done    chan struct{}
	now     func() time.Time
	dropped atomic.Int64

	file *os.File // nil when it could not be opened
	size int64
}

const (
	refusalsName   = "refusals.log"
	refusalsQueue  = 256
	refusalsText   = 1024 // bytes of one text
	refusalsWhy    = 20   // reasons of one refusal
	refusalsSpared = 0.1  // the share of the disk that is left to others
)

// OpenRefusals begins to log in the directory, which exists. Each of the two files grows to limit bytes; 0 means
// 8 MiB.
func OpenRefusals(dir string, limit int64) *Refusals {
	if limit <= 0 {
		limit = 8 << 20
	}
	r := &Refusals{
		dir: dir, limit: limit, now: time.Now,
		queue: make(chan Refusal, refusalsQueue), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go r.write()
	return r
}

// Record logs a refusal and does not wait for the disk.
func (r *Refusals) Record(refusal Refusal) {
	refusal.Time = r.now().UTC().Format(timeLayout)
	select {
	case r.queue <- refusal:
	default:
		r.dropped.Add(1)
	}
}

// Dropped is the number of refusals that were not logged.
func (r *Refusals) Dropped() int64 { return r.dropped.Load() }

// Close writes what waits, and ends. It is called once, after the last Record.
func (r *Refusals) Close() error {
	close(r.stop)
	<-r.done
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

func (r *Refusals) write() {
	defer close(r.done)
	for {
		select {
		case refusal := <-r.queue:
			r.put(refusal)
		case <-r.stop:
			for len(r.queue) > 0 {
				r.put(<-r.queue)
			}
			return
		}
	}
}

func (r *Refusals) put(refusal Refusal) {
	if err := r.log(refusal); err != nil {
		r.dropped.Add(1)
		if r.file != nil { // the next one begins with a new descriptor
			_ = r.file.Close() // its fault is counted
			r.file = nil
		}
	}
}

// log writes one line.
func (r *Refusals) log(refusal Refusal) error {
	line, err := json.Marshal(refusal.short())
	if err != nil {
		return err
	}
	if free, err := freeShare(r.dir); err != nil || free < refusalsSpared {
		return errors.Join(err, errors.New("the disk is nearly full"))
	}
	if err := r.open(); err != nil {
		return err
	}
	n, err := r.file.Write(append(line, '\n'))
	r.size += int64(n)
	return err
}

// open opens the file, and begins a new one when it is full.
func (r *Refusals) open() error {
	path := filepath.Join(r.dir, refusalsName)
	if r.file != nil && r.size >= r.limit {
		err := r.file.Close()
		if r.file = nil; err != nil {
			return err
		}
	}
	if r.file != nil {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.Size() >= r.limit {
		if err := os.Rename(path, path+".1"); err != nil {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.size = f, info.Size()
	return nil
}

// short bounds what requesters can make long.
func (r Refusal) short() Refusal {
	for _, text := range []*string{&r.UID, &r.Name, &r.Signer, &r.Username} {
		*text = cutText(*text)
	}
	more := len(r.Reasons) - refusalsWhy
	reasons := append([]Reason{}, r.Reasons[:min(len(r.Reasons), refusalsWhy)]...)
	for i := range reasons {
		reasons[i] = Reason{cutText(reasons[i].Rule), cutText(reasons[i].Field), cutText(reasons[i].Message)}
	}
	if more > 0 {
		reasons = append(reasons, Reason{Message: fmt.Sprintf("and %d more", more)})
	}
	r.Reasons = reasons
	return r
}

func cutText(text string) string {
	if len(text) <= refusalsText {
		return text
	}
	return text[:refusalsText] + "…"
}

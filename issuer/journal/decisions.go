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

	"hsm-signer/policy"
)

// A Decision is what was decided on a request, for the log.
type Decision struct {
	Time          string   `json:"time"` // set by the log
	UID           string   `json:"uid"`
	Name          string   `json:"name"`
	Signer        string   `json:"signer"`
	Username      string   `json:"username"`
	RequestSHA256 string   `json:"requestSHA256,omitempty"` // of the PKCS#10 request in DER, hex
	PolicyHash    string   `json:"policyHash,omitempty"`
	Verdict       string   `json:"verdict"`           // granted, refused or waiting
	Rule          string   `json:"rule,omitempty"`    // that grants, or would
	Names         []string `json:"names,omitempty"`   // that are granted
	Missing       string   `json:"missing,omitempty"` // the missing fact
	// Reasons are those of a refusal, each without its code and without what would have been
	// allowed.
	Reasons []policy.Reason `json:"reasons,omitempty"`
}

// Decisions is a log of what was decided: a file and its predecessor, of the same name with .1, one
// JSON object a line. It is no part of the journal's chain, is not synced, and cannot stop or break
// anything: what cannot be written, in time or at all, is counted and dropped. It is safe for
// concurrent use.
type Decisions struct {
	dir     string
	name    string
	limit   int64
	queue   chan Decision
	stop    chan struct{}
	done    chan struct{}
	now     func() time.Time
	dropped atomic.Int64

	file *os.File // nil when it could not be opened
	size int64
}

// The logs that there are.
const (
	RefusalsLog = "refusals.log" // next to the journal: what was refused
	ShadowLog   = "shadow.log"   // of one that decides and does nothing: all that it decided
)

const (
	decisionsQueue  = 256
	decisionsText   = 1024 // bytes of one text
	decisionsMany   = 20   // reasons, or names, of one decision
	decisionsSpared = 0.1  // the share of the disk that is left to others
)

// OpenDecisions begins to log in the directory, which exists. Each of the two files grows to limit
// bytes; 0 means 8 MiB.
func OpenDecisions(dir, name string, limit int64) *Decisions {
	if limit <= 0 {
		limit = 8 << 20
	}
	d := &Decisions{
		dir: dir, name: name, limit: limit, now: time.Now,
		queue: make(chan Decision, decisionsQueue), stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	go d.write()
	return d
}

// Record logs a decision and does not wait for the disk.
func (d *Decisions) Record(decision Decision) {
	decision.Time = d.now().UTC().Format(timeLayout)
	select {
	case d.queue <- decision:
	default:
		d.dropped.Add(1)
	}
}

// Dropped is the number of decisions that were not logged.
func (d *Decisions) Dropped() int64 { return d.dropped.Load() }

// Close writes what waits, and ends. It is called once, after the last Record.
func (d *Decisions) Close() error {
	close(d.stop)
	<-d.done
	if d.file == nil {
		return nil
	}
	return d.file.Close()
}

func (d *Decisions) write() {
	defer close(d.done)
	for {
		select {
		case decision := <-d.queue:
			d.put(decision)
		case <-d.stop:
			for len(d.queue) > 0 {
				d.put(<-d.queue)
			}
			return
		}
	}
}

func (d *Decisions) put(decision Decision) {
	if err := d.log(decision); err != nil {
		d.dropped.Add(1)
		if d.file != nil { // the next one begins with a new descriptor
			_ = d.file.Close() // its fault is counted
			d.file = nil
		}
	}
}

// log writes one line.
func (d *Decisions) log(decision Decision) error {
	line, err := json.Marshal(decision.short())
	if err != nil {
		return err
	}
	if free, err := freeShare(d.dir); err != nil || free < decisionsSpared {
		return errors.Join(err, errors.New("the disk is nearly full"))
	}
	if err := d.open(); err != nil {
		return err
	}
	n, err := d.file.Write(append(line, '\n'))
	d.size += int64(n)
	return err
}

// open opens the file, and begins a new one when it is full.
func (d *Decisions) open() error {
	path := filepath.Join(d.dir, d.name)
	if d.file != nil && d.size >= d.limit {
		err := d.file.Close()
		if d.file = nil; err != nil {
			return err
		}
	}
	if d.file != nil {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.Size() >= d.limit {
		if err := os.Rename(path, path+".1"); err != nil {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := openOwn(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.file, d.size = f, info.Size()
	return nil
}

// short bounds what requesters can make long.
func (d Decision) short() Decision {
	for _, text := range []*string{&d.UID, &d.Name, &d.Signer, &d.Username, &d.Missing} {
		*text = cutText(*text)
	}
	d.Names = few(d.Names, cutText, func(more string) string { return more })
	d.Reasons = few(d.Reasons, shortReason, func(more string) policy.Reason {
		return policy.Reason{Message: more}
	})
	return d
}

func shortReason(r policy.Reason) policy.Reason {
	return policy.Reason{Rule: cutText(r.Rule), Field: cutText(r.Field),
		Message: cutText(r.Message)}
}

// few returns the first of all, each short, and how many more there are.
func few[T any](all []T, short func(T) T, say func(more string) T) []T {
	var first []T
	for _, one := range all[:min(len(all), decisionsMany)] {
		first = append(first, short(one))
	}
	if more := len(all) - decisionsMany; more > 0 {
		first = append(first, say(fmt.Sprintf("and %d more", more)))
	}
	return first
}

func cutText(text string) string {
	if len(text) <= decisionsText {
		return text
	}
	return text[:decisionsText] + "…"
}

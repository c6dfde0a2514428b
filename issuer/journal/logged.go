package journal

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// longestDecision bounds one line of a log of decisions, in bytes. None is written that is longer.
const longestDecision = 1 << 20

// Logged returns those of the UIDs for which a log of decisions, or its predecessor, has a line.
// What it returns is synced to the disk. A log that does not exist has none.
func Logged(dir, name string, uids []string) (map[string]bool, error) {
	wanted, found := make(map[string]bool, len(uids)), map[string]bool{}
	for _, uid := range uids {
		wanted[uid] = true
	}
	// The log comes first: it may become the predecessor meanwhile.
	for _, file := range []string{name, name + ".1"} {
		if err := findLogged(filepath.Join(dir, file), wanted, found); err != nil {
			return nil, fmt.Errorf("log of decisions: %w", err)
		}
	}
	return found, nil
}

// findLogged adds to found the wanted UIDs that are in the file.
func findLogged(path string, wanted, found map[string]bool) error {
	f, err := openOwn(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, longestDecision)
	var here []string
	for lines.Scan() {
		var line struct {
			UID string `json:"uid"`
		}
		// A line that is being written, or that a crash has cut, counts as not there.
		if json.Unmarshal(lines.Bytes(), &line) == nil && wanted[line.UID] {
			here = append(here, line.UID)
		}
	}
	if err := errors.Join(lines.Err(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, uid := range here {
		found[uid] = true
	}
	return nil
}

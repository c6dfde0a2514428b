package release

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// An entry is a file, a directory or a symbolic link of an archive or a package.
type entry struct {
	path  string      // without a slash at the front
	mode  fs.FileMode // permissions
	from  string      // of a file: where its content is
	link  string      // of a symbolic link: its target
	owner int         // and group; 0: root
}

func (e entry) isDir() bool { return e.from == "" && e.link == "" }

// file returns an entry for a file with a mode.
func file(path, from string, mode fs.FileMode) entry {
	return entry{path: path, from: from, mode: mode}
}

// below returns entries for all files and symbolic links in a directory, which get the prefix.
func below(dir, prefix string) ([]entry, error) {
	var entries []entry
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		e := file(path.Join(prefix, filepath.ToSlash(relative)), name, 0o644)
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			e.from = ""
			e.link, err = os.Readlink(name)
		case info.Mode()&0o100 != 0:
			e.mode = 0o755
		}
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("release: list %s: %w", dir, err)
	}
	return entries, nil
}

// withParents returns the entries, sorted, with every directory above them.
func withParents(entries []entry) []entry {
	all := slices.Clone(entries)
	for _, e := range entries {
		for dir := path.Dir(e.path); dir != "."; dir = path.Dir(dir) {
			all = append(all, entry{path: dir, mode: 0o755})
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
	return slices.CompactFunc(all, func(a, b entry) bool { return a.path == b.path })
}

// writeTar writes the entries as a tar file in which every time is modified.
func writeTar(w io.Writer, entries []entry, modified time.Time) error {
	t := tar.NewWriter(w)
	for _, e := range withParents(entries) {
		if err := writeEntry(t, e, modified); err != nil {
			return fmt.Errorf("release: write %s: %w", e.path, err)
		}
	}
	return t.Close()
}

func writeEntry(t *tar.Writer, e entry, modified time.Time) error {
	header := &tar.Header{Name: e.path, Mode: int64(e.mode.Perm()), ModTime: modified,
		Uid: e.owner, Gid: e.owner, Format: tar.FormatGNU, Typeflag: tar.TypeReg}
	if e.owner == 0 {
		header.Uname, header.Gname = "root", "root"
	}
	switch {
	case e.isDir():
		header.Name, header.Typeflag = e.path+"/", tar.TypeDir
		return t.WriteHeader(header)
	case e.link != "":
		header.Linkname, header.Typeflag, header.Mode = e.link, tar.TypeSymlink, 0o777
		return t.WriteHeader(header)
	}
	content, err := os.Open(e.from)
	if err != nil {
		return err
	}
	defer content.Close()
	info, err := content.Stat()
	if err != nil {
		return err
	}
	header.Size = info.Size()
	if err := t.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(t, content)
	return err
}

// writeArchive writes the entries to a new compressed tar file.
func writeArchive(name string, entries []entry, modified time.Time) (err error) {
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	z := gzip.NewWriter(out) // without a name and a time
	if err := writeTar(z, entries, modified); err != nil {
		return err
	}
	return z.Close()
}

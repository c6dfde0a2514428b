package testenv

import (
	"fmt"
	"path/filepath"
)

// directories are the distributions' directories for PKCS#11 libraries.
var directories = []string{
	"/usr/lib/softhsm",           // Debian, Alpine
	"/usr/lib/*/softhsm",         // Debian, multiarch
	"/usr/lib64/softhsm",         // Fedora, openSUSE
	"/usr/local/lib/softhsm",     // from source
	"/opt/homebrew/lib/softhsm",  // Homebrew
	"/usr/lib/*/pkcs11",          // Debian, multiarch
	"/usr/lib/*",                 // Debian, multiarch
	"/usr/lib/*/nss",             // Debian, older
	"/usr/lib64/pkcs11",          // Fedora
	"/usr/lib64",                 // Fedora
	"/usr/lib/pkcs11",            // Arch, Alpine
	"/usr/lib",                   // Arch, Alpine
	"/usr/local/lib",             // from source
	"/usr/local/lib64",           // from source
	"/opt/homebrew/lib",          // Homebrew
	"/run/current-system/sw/lib", // NixOS
}

// FindLibrary finds a PKCS#11 library. The Debian package is for the error.
func FindLibrary(library, debian string) (string, error) {
	for _, directory := range directories {
		if found, err := filepath.Glob(filepath.Join(directory, library)); err == nil &&
			len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("%s is not where distributions put it: run `make setup`, or install "+
		"the package %s", library, debian)
}

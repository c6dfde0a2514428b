// Package pin keeps the token's PIN from being seen: it takes it out of the environment, refuses one
// with invisible characters, and keeps the memory of the process out of the reach of others.
package pin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"hsm-signer/cmd/hsm-signer/internal/terminal"
	"hsm-signer/cmd/hsm-signer/internal/trustedfile"
	"hsm-signer/hsm"
)

// The variables that may hold a PIN.
const (
	Variable    = "PKCS11_PIN"
	URIVariable = "PKCS11_URI" // its pin-value
)

const (
	// descriptorVariable tells the process that takes this one's place where it reads the PIN.
	descriptorVariable = "HSM_SIGNER_PIN_DESCRIPTOR"
)

// Hide lets the process begin anew without the PIN in its environment: unsetting a
// variable leaves it in /proc/PID/environ. The PIN goes over a pipe that nobody else has.
func Hide() error {
	if os.Getenv(descriptorVariable) != "" { // it has begun anew already
		return nil
	}
	pin, environment := pinIn(os.Environ())
	switch {
	case pin == "":
		return nil
	case len(pin) > Longest:
		return fmt.Errorf("it has %d bytes, and a PIN has at most %d", len(pin), Longest)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	if _, err := writer.WriteString(string(pin)); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	// A duplicate is not closed when the new program begins.
	descriptor, err := syscall.Dup(int(reader.Fd()))
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(environment, descriptorVariable+"="+strconv.Itoa(descriptor)))
}

// pinIn returns the PIN that the environment holds, in its own variable or in the URI, and the
// environment without it. Where it holds two, something else stands in the URI in the place of the one
// there, so that the configuration can say so.
func pinIn(environ []string) (hsm.PIN, []string) {
	pin := hsm.PIN(os.Getenv(Variable))
	environ = slices.DeleteFunc(environ, func(entry string) bool { return strings.HasPrefix(entry, Variable+"=") })
	uri, err := hsm.ParseURI(os.Getenv(URIVariable))
	switch {
	case err != nil || uri.PINValue == "":
		return pin, environ
	case pin == "":
		pin, uri.PINValue = uri.PINValue, ""
	}
	environ = slices.DeleteFunc(environ, func(entry string) bool { return strings.HasPrefix(entry, URIVariable+"=") })
	return pin, append(environ, URIVariable+"="+uri.String())
}

// Take takes the PIN, once: from the pipe, or where the process did not begin anew from the
// environment.
func Take() (hsm.PIN, error) {
	pin := os.Getenv(Variable)
	text := os.Getenv(descriptorVariable)
	if err := errors.Join(os.Unsetenv(Variable), os.Unsetenv(descriptorVariable)); err != nil {
		return "", err
	}
	if text == "" {
		return hsm.PIN(pin), Check(pin)
	}
	descriptor, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", fmt.Errorf("%s is not for users to set: %w", descriptorVariable, err)
	}
	pipe := os.NewFile(uintptr(descriptor), "PIN")
	defer pipe.Close()
	read, err := io.ReadAll(io.LimitReader(pipe, Longest))
	return hsm.PIN(read), errors.Join(err, Check(string(read)))
}

// Check refuses a PIN with a character that nobody can see, before the token counts it as a
// wrong one.
func Check(pin string) error {
	at := strings.IndexFunc(pin, terminal.Invisible)
	if at < 0 {
		return nil
	}
	found, _ := utf8.DecodeRuneInString(pin[at:])
	switch {
	case unicode.IsControl(found):
		return errors.New("the PIN has a control character in it, such as the newline that \"echo PIN | base64\" puts into a Secret: write it without (printf %s)")
	case found == byteOrderMark:
		return errors.New("the PIN has a byte order mark (U+FEFF) in it, which some editors put first: save it as UTF-8 without (printf %s)")
	}
	return fmt.Errorf("the PIN has a character in it that cannot be seen (%U), such as a no-break or zero-width space: type it again (printf %%s)", found)
}

const byteOrderMark = '\uFEFF'

// InFile returns the PIN without the end of its line.
func InFile(rules trustedfile.Rules, path string) (hsm.PIN, error) {
	text, err := rules.Read(path)
	if err != nil {
		return "", fmt.Errorf("the PIN cannot be read: %w", err)
	}
	pin := strings.TrimRight(string(text), "\r\n")
	if pin == "" {
		return "", fmt.Errorf("the file %s is empty", path)
	}
	if err := Check(pin); err != nil {
		return "", fmt.Errorf("the file %s: %w", path, err)
	}
	return hsm.PIN(pin), nil
}

// Longest is more than any token takes.
const Longest = 1 << 10

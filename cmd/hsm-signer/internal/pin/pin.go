// Package pin keeps the token's PIN from being seen: it takes it out of the environment, refuses
// one with invisible characters, and keeps the memory of the process out of the reach of others.
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
	"hsm-signer/hsm/pkcs11uri"
)

// The variables that may hold a PIN.
const (
	Variable    = "PKCS11_PIN"
	URIVariable = "PKCS11_URI" // its pin-value
)

const (
	// descriptorVariable tells the process that replaces this one where to read the PIN.
	descriptorVariable = "HSM_SIGNER_PIN_DESCRIPTOR"
)

// Hide restarts the process without the PIN in its environment: unsetting a variable would leave it
// in /proc/PID/environ. The PIN is passed through a pipe that no other process has.
func Hide() error {
	if text := os.Getenv(descriptorVariable); text != "" { // it was restarted already
		descriptor, err := parseDescriptor(text)
		if err == nil {
			syscall.CloseOnExec(descriptor) // no program that this process runs gets the PIN
		}
		return err
	}
	pin, environment := pinIn(os.Environ())
	switch {
	case pin == "":
		return nil
	case len(pin) > Longest:
		return fmt.Errorf("it has %d bytes; a PIN has at most %d", len(pin), Longest)
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
	// A duplicate is not closed when the new program starts.
	descriptor, err := syscall.Dup(int(reader.Fd()))
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args,
		append(environment, descriptorVariable+"="+strconv.Itoa(descriptor)))
}

// pinIn returns the PIN in the environment, in its own variable or in the URI, and the environment
// without it. If there are two, the URI keeps a placeholder, so that the configuration reports
// both.
func pinIn(environ []string) (hsm.PIN, []string) {
	pin := hsm.PIN(os.Getenv(Variable))
	environ = slices.DeleteFunc(environ,
		func(entry string) bool { return strings.HasPrefix(entry, Variable+"=") })
	uri, err := pkcs11uri.Parse(os.Getenv(URIVariable))
	switch {
	case err != nil || uri.PINValue == "":
		return pin, environ
	case pin == "":
		pin, uri.PINValue = hsm.PIN(uri.PINValue), ""
	}
	environ = slices.DeleteFunc(environ,
		func(entry string) bool { return strings.HasPrefix(entry, URIVariable+"=") })
	return pin, append(environ, URIVariable+"="+uri.String())
}

// Take returns the PIN, once: from the pipe, or from the environment if the process was not
// restarted.
func Take() (hsm.PIN, error) {
	pin := os.Getenv(Variable)
	text := os.Getenv(descriptorVariable)
	if err := errors.Join(os.Unsetenv(Variable), os.Unsetenv(descriptorVariable)); err != nil {
		return "", err
	}
	if text == "" {
		return hsm.PIN(pin), Check(pin)
	}
	descriptor, err := parseDescriptor(text)
	if err != nil {
		return "", err
	}
	pipe := os.NewFile(uintptr(descriptor), "PIN")
	defer pipe.Close()
	read, err := io.ReadAll(io.LimitReader(pipe, Longest))
	return hsm.PIN(read), errors.Join(err, Check(string(read)))
}

// parseDescriptor parses the number of a file descriptor.
func parseDescriptor(text string) (int, error) {
	descriptor, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s is internal: do not set it: %w", descriptorVariable, err)
	}
	return int(descriptor), nil
}

// Check returns an error if the PIN has an invisible character, before the token counts it as a
// wrong one.
func Check(pin string) error {
	at := strings.IndexFunc(pin, terminal.Invisible)
	if at < 0 {
		return nil
	}
	found, _ := utf8.DecodeRuneInString(pin[at:])
	switch {
	case unicode.IsControl(found):
		return errors.New("the PIN contains a control character, such as the newline that " +
			"\"echo PIN | base64\" puts into a Secret: write it without (printf %s)")
	case found == byteOrderMark:
		return errors.New("the PIN contains a byte order mark (U+FEFF), which some editors put " +
			"first: save it as UTF-8 without (printf %s)")
	}
	return fmt.Errorf("the PIN contains an invisible character (%U), such as a no-break or "+
		"zero-width space: type it again (printf %%s)", found)
}

const byteOrderMark = '\uFEFF'

// InFile returns the PIN in a file, without the end of its line.
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

// Longest is more than any token accepts.
const Longest = 1 << 10

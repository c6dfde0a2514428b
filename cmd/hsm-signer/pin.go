package main

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

	"hsm-signer/hsm"
)

const (
	pinVariable = "PKCS11_PIN"
	// pinDescriptor tells the process that takes this one's place where it reads the PIN.
	pinDescriptor = "HSM_SIGNER_PIN_DESCRIPTOR"
)

// hidePIN lets the process begin anew without the PIN in its environment: unsetting a
// variable leaves it in /proc/PID/environ. The PIN goes over a pipe that nobody else has.
func hidePIN() error {
	if os.Getenv(pinDescriptor) != "" { // it has begun anew already
		return nil
	}
	pin, environment := pinIn(os.Environ())
	switch {
	case pin == "":
		return nil
	case len(pin) > longestPIN:
		return fmt.Errorf("it has %d bytes, and a PIN has at most %d", len(pin), longestPIN)
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
	return syscall.Exec(self, os.Args, append(environment, pinDescriptor+"="+strconv.Itoa(descriptor)))
}

// pinIn returns the PIN that the environment holds, in its own variable or in the URI, and the
// environment without it. Where it holds two, something else stands in the URI in the place of the one
// there, so that the configuration can say so.
func pinIn(environ []string) (hsm.PIN, []string) {
	pin := hsm.PIN(os.Getenv(pinVariable))
	environ = slices.DeleteFunc(environ, func(entry string) bool { return strings.HasPrefix(entry, pinVariable+"=") })
	uri, err := hsm.ParseURI(os.Getenv(uriVariable))
	switch {
	case err != nil || uri.PINValue == "":
		return pin, environ
	case pin == "":
		pin, uri.PINValue = uri.PINValue, ""
	}
	environ = slices.DeleteFunc(environ, func(entry string) bool { return strings.HasPrefix(entry, uriVariable+"=") })
	return pin, append(environ, uriVariable+"="+uri.String())
}

// takePIN takes the PIN, once: from the pipe, or where the process did not begin anew from the
// environment.
func takePIN() (hsm.PIN, error) {
	pin := os.Getenv(pinVariable)
	text := os.Getenv(pinDescriptor)
	if err := errors.Join(os.Unsetenv(pinVariable), os.Unsetenv(pinDescriptor)); err != nil {
		return "", err
	}
	if text == "" {
		return hsm.PIN(pin), checkPIN(pin)
	}
	descriptor, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", fmt.Errorf("%s is not for users to set: %w", pinDescriptor, err)
	}
	pipe := os.NewFile(uintptr(descriptor), "PIN")
	defer pipe.Close()
	read, err := io.ReadAll(io.LimitReader(pipe, longestPIN))
	return hsm.PIN(read), errors.Join(err, checkPIN(string(read)))
}

// checkPIN refuses a PIN with a character that nobody can see, before the token counts it as a
// wrong one.
func checkPIN(pin string) error {
	at := strings.IndexFunc(pin, invisible)
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

//go:build cgo

package cryptoki

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"hsm-signer/hsm/ckr"
)

func (t TokenID) matches(this TokenID) bool {
	fits := func(want, is string) bool { return want == "" || want == is }
	return (t.Slot == nil || *t.Slot == *this.Slot) &&
		fits(t.Label, this.Label) && fits(t.Serial, this.Serial) &&
		fits(t.Manufacturer, this.Manufacturer) && fits(t.Model, this.Model) &&
		fits(t.SlotDescription, this.SlotDescription) &&
		fits(t.SlotManufacturer, this.SlotManufacturer)
}

// brief leaves out what rarely tells tokens apart.
func (t TokenID) brief() TokenID { return TokenID{Slot: t.Slot, Label: t.Label, Serial: t.Serial} }

// FindToken finds the token that matches, and returns an error unless exactly one does. A slot that
// cannot be read is an error, since it may hold a second one. If the slot is named, no other is
// read.
func (c *Connection) FindToken(ctx context.Context) error {
	want := c.user.config.Token
	if err := c.user.identify(ctx); err != nil {
		return err
	}
	slots, err := call(ctx, c.caller, c.user.config.Timeout, "C_GetSlotList",
		func() ([]uint, error) { return c.module.ctx.GetSlotList(true) }, nil)
	if err != nil {
		return Unavailable(err, "list the slots")
	}
	var found, seen []string
	for _, slot := range slots {
		if want.Slot != nil && *want.Slot != slot {
			continue
		}
		this, info, err := c.identify(ctx, slot)
		switch {
		case ckr.Is(err, pkcs11.CKR_TOKEN_NOT_PRESENT) ||
			ckr.Is(err, pkcs11.CKR_TOKEN_NOT_RECOGNIZED) || ckr.Is(err, pkcs11.CKR_SLOT_ID_INVALID):
			continue // it was removed meanwhile, or there is none
		case err != nil:
			return Unavailable(err, "read the token in slot %d", slot)
		case info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0:
			continue
		}
		seen = append(seen, this.brief().String())
		if want.matches(this) {
			found = append(found, this.brief().String())
			c.slot, c.token = slot, info
		}
	}
	if len(found) == 1 {
		return nil
	}
	return notOne(want, slots, found, seen)
}

// notOne returns why the tokens that were found, of those that were seen in the slots, are not
// exactly one.
func notOne(want TokenID, slots []uint, found, seen []string) error {
	switch {
	case len(found) > 1:
		return Faultf(ErrUnavailable, "%d tokens match (%s): "+
			"name one by PKCS11_SLOT, PKCS11_TOKEN_LABEL and PKCS11_TOKEN_SERIAL, or by PKCS11_URI",
			len(found), strings.Join(found, "; "))
	case len(seen) == 0 && want.Slot != nil && len(slots) > 0:
		return Faultf(ErrUnavailable, "%s not found: the module shows tokens in the slots %v, "+
			"and no initialised token in this one. Slot numbers may change when tokens are "+
			"added or removed: use PKCS11_TOKEN_LABEL or PKCS11_TOKEN_SERIAL", want, slots)
	case len(seen) == 0:
		return Faultf(ErrUnavailable, "%s not found: the module shows no initialised token at "+
			"all. Make one with its own tool (SoftHSM: softhsm2-util --init-token); if there is "+
			"one, check that this user may read the module's configuration, and read and write "+
			"its files", want)
	}
	return Faultf(ErrUnavailable, "%s not found: the module shows %s", want,
		strings.Join(seen, "; "))
}

// identify reads the description of a slot and its token.
func (c *Connection) identify(ctx context.Context, slot uint) (TokenID, pkcs11.TokenInfo, error) {
	info, err := call(ctx, c.caller, c.user.config.Timeout, "C_GetTokenInfo",
		func() (pkcs11.TokenInfo, error) { return c.module.ctx.GetTokenInfo(slot) }, nil)
	if err != nil {
		return TokenID{}, info, err
	}
	where, err := call(ctx, c.caller, c.user.config.Timeout, "C_GetSlotInfo",
		func() (pkcs11.SlotInfo, error) { return c.module.ctx.GetSlotInfo(slot) }, nil)
	return TokenID{
		Slot: &slot, Label: trim(info.Label), Serial: trim(info.SerialNumber),
		Manufacturer: trim(info.ManufacturerID), Model: trim(info.Model),
		SlotDescription: trim(where.SlotDescription), SlotManufacturer: trim(where.ManufacturerID),
	}, info, err
}

// trim removes the padding of PKCS#11's fixed-length texts: blanks, or what follows a NUL, which
// some modules end a text with.
func trim(s string) string {
	text, _, _ := strings.Cut(s, "\x00")
	return strings.TrimRight(text, " ")
}

// PINState returns an error if the PIN is locked, or if one more failure would lock it.
func (c *Connection) PINState(context.Context) error {
	token := c.user.config.Token
	switch flags := c.token.Flags; {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return Faultf(ErrPIN, "the user PIN of the %s is locked: ask the security officer to "+
			"set a new one", token)
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return Faultf(ErrPIN, "the %s allows only one more wrong PIN before it locks: "+
			"log in by hand with the right PIN first, which resets the counter", token)
	}
	return nil
}

// WrongPIN reports whether the token says that a wrong PIN was tried after the last login.
func (c *Connection) WrongPIN() bool { return c.token.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 }

// Describe describes the token as it describes itself.
func (c *Connection) Describe() string {
	t := c.token
	sessions := "any number of sessions"
	if limit := t.MaxSessionCount; limit != 0 && limit != ^uint(0) {
		sessions = fmt.Sprintf("at most %d sessions", limit)
	}
	return fmt.Sprintf("%q, serial number %s, in slot %d: %s by %s, firmware %d.%d, %s",
		trim(t.Label), trim(t.SerialNumber), c.slot,
		trim(t.Model), trim(t.ManufacturerID), t.FirmwareVersion.Major, t.FirmwareVersion.Minor,
		sessions)
}

// Token returns what the token said about itself before the login (C_GetTokenInfo).
func (c *Connection) Token() Token {
	version := func(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
	return Token{
		Label: trim(c.token.Label), Serial: trim(c.token.SerialNumber),
		Manufacturer: trim(c.token.ManufacturerID), Model: trim(c.token.Model),
		Hardware: version(c.token.HardwareVersion), Firmware: version(c.token.FirmwareVersion),
	}
}

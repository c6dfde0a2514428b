package pkcs11shim

import (
	"encoding/hex"
	"fmt"
	"time"
)

// Any stands for every function.
const Any = "*"

// The functions of PKCS#11 that rules and tests name most.
const (
	Initialize        = "C_Initialize"
	Finalize          = "C_Finalize"
	GetInfo           = "C_GetInfo"
	GetSlotList       = "C_GetSlotList"
	GetSlotInfo       = "C_GetSlotInfo"
	GetTokenInfo      = "C_GetTokenInfo"
	OpenSession       = "C_OpenSession"
	CloseSession      = "C_CloseSession"
	CloseAllSessions  = "C_CloseAllSessions"
	Login             = "C_Login"
	Logout            = "C_Logout"
	FindObjectsInit   = "C_FindObjectsInit"
	FindObjects       = "C_FindObjects"
	FindObjectsFinal  = "C_FindObjectsFinal"
	GetAttributeValue = "C_GetAttributeValue"
	SignInit          = "C_SignInit"
	Sign              = "C_Sign"
)

// A Rule changes calls of a function: every call, unless From and Times limit it. If several rules
// match, each takes effect in order.
type Rule struct {
	function string
	action   string
	from     uint
	times    uint // 0: forever
	percent  uint // of those calls; 0: all
	seed     uint
}

func newRule(function, format string, args ...any) Rule {
	return Rule{function: function, action: fmt.Sprintf(format, args...), from: 1}
}

// Fail returns that CKR code without calling the module.
func Fail(function string, code uint) Rule { return newRule(function, "fail %#x", code) }

// FailAfter calls the module and returns that CKR code instead of the module's: the work is done,
// and its result is lost.
func FailAfter(function string, code uint) Rule { return newRule(function, "failafter %#x", code) }

// Kill kills the process with SIGKILL instead of the call. The call is not in the log.
func Kill(function string) Rule { return newRule(function, "kill") }

// KillAfter calls the module, and kills the process before it gets the result.
func KillAfter(function string) Rule { return newRule(function, "killafter") }

// Delay waits before the call.
func Delay(function string, d time.Duration) Rule {
	return newRule(function, "delay %d", d.Milliseconds())
}

// Hang waits before the call until the rule is removed. Calls shows the call as hanging.
func Hang(function string) Rule { return newRule(function, "hang") }

// LoseSessions makes the module forget sessions, login and handles before the call, as after a
// restart of the HSM: the shim finalizes and initializes it. It waits for calls in progress. It
// happens once; use Times for more. Do not use it with opencryptoki, whose second C_Finalize closes
// a file descriptor that may belong to something else; use CloseSessions.
func LoseSessions(function string) Rule { return newRule(function, "lose").Times(1) }

// CloseSessions closes all sessions before the call, without the application's knowledge, which
// also ends the login. It waits for calls in progress. It happens once; use Times for more.
func CloseSessions(function string) Rule { return newRule(function, "close").Times(1) }

// LimitSessions limits the sessions of a process: C_OpenSession returns CKR_SESSION_COUNT.
func LimitSessions(most uint) Rule { return newRule(OpenSession, "limit %d", most) }

// What a token may report instead of a maximum number of sessions.
const (
	SessionsUnlimited = 0        // CK_EFFECTIVELY_INFINITE
	SessionsUnknown   = ^uint(0) // CK_UNAVAILABLE_INFORMATION
)

// ReportSessions makes the token report this limit of sessions. It enforces nothing.
func ReportSessions(most uint) Rule { return newRule(GetTokenInfo, "sessions %d", most) }

// AddTokenFlags adds flags to those of the token, such as CKF_USER_PIN_FINAL_TRY.
func AddTokenFlags(flags uint) Rule { return newRule(GetTokenInfo, "flags %#x", flags) }

// FindAtMost limits the objects that one FindObjects returns; 0: none, as if the token had no keys.
func FindAtMost(most uint) Rule { return newRule(FindObjects, "find %d", most) }

// PadWithNUL pads the token's texts with NULs instead of blanks, as C does.
func PadWithNUL() Rule { return newRule(GetTokenInfo, "pad 0") }

// PadWithRubbish pads the token's texts with one NUL and rubbish.
func PadWithRubbish() Rule { return newRule(GetTokenInfo, "pad 1") }

// SignInDER makes the module return r and s in DER, which PKCS#11 forbids.
func SignInDER() Rule { return newRule(Sign, "form 0") }

// SignShort removes the first byte of a signature.
func SignShort() Rule { return newRule(Sign, "form 1") }

// BarePoint makes the module return CKA_EC_POINT without its OCTET STRING.
func BarePoint() Rule { return newRule(GetAttributeValue, "point 0") }

// PointInBits makes the module return CKA_EC_POINT in a BIT STRING.
func PointInBits() Rule { return newRule(GetAttributeValue, "point 3") }

// SwapKey replaces every private key by the one with this label: in the results of FindObjects, or
// under the handle that GetAttributeValue or SignInit gets.
func SwapKey(function, label string) Rule {
	return newRule(function, "swap %s", hex.EncodeToString([]byte(label)))
}

// From makes the rule start with the nth call of the function in a process.
func (r Rule) From(n uint) Rule { r.from = n; return r }

// Times makes the rule end after k calls.
func (r Rule) Times(k uint) Rule { r.times = k; return r }

// Percent applies the rule to this percentage of its calls, at random. The same seed chooses the
// same calls.
func (r Rule) Percent(p, seed uint) Rule { r.percent, r.seed = p, seed; return r }

// String returns the rule in the module's format.
func (r Rule) String() string {
	text := fmt.Sprintf("%d %d %s %s", r.from, r.times, r.function, r.action)
	if r.percent > 0 {
		text += fmt.Sprintf(" ~%d/%d", r.percent, r.seed)
	}
	return text
}

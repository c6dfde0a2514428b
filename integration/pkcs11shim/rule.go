package pkcs11shim

import (
	"encoding/hex"
	"fmt"
	"time"
)

// Any is every function, in the place of a function's name.
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

// A Rule says what to do at which calls of which function: at every one, unless From
// and Times say otherwise. Where several hold, each takes effect, in their order.
type Rule struct {
	function string
	action   string
	from     uint
	times    uint // 0: for ever
	percent  uint // of those calls; 0: all
	seed     uint
}

func newRule(function, format string, args ...any) Rule {
	return Rule{function: function, action: fmt.Sprintf(format, args...), from: 1}
}

// Fail answers that CKR code and does not call the module.
func Fail(function string, code uint) Rule { return newRule(function, "fail %#x", code) }

// FailAfter calls the module, and then answers that CKR code whatever it said: the work is
// done and its answer lost.
func FailAfter(function string, code uint) Rule { return newRule(function, "failafter %#x", code) }

// Kill kills the process, as kill -9 does, in the place of the call. The module is not called, and
// the call is in no log.
func Kill(function string) Rule { return newRule(function, "kill") }

// KillAfter calls the module, and kills the process before it hears what came of it.
func KillAfter(function string) Rule { return newRule(function, "killafter") }

// Delay waits before the call.
func Delay(function string, d time.Duration) Rule {
	return newRule(function, "delay %d", d.Milliseconds())
}

// Hang waits before the call until the rule is gone; Calls shows it as hanging.
func Hang(function string) Rule { return newRule(function, "hang") }

// LoseSessions has the module forget sessions, login and handles before the call, as
// when the HSM was restarted: it is finalized and initialised. It waits for calls that are
// in the module. It happens once; use Times for more. Not for opencryptoki: its
// second C_Finalize closes a file descriptor that may be anyone's; use CloseSessions.
func LoseSessions(function string) Rule { return newRule(function, "lose").Times(1) }

// CloseSessions closes all sessions before the call, behind the application's back, which
// ends the login too. It waits for calls that are in the module. It happens once; use
// Times for more.
func CloseSessions(function string) Rule { return newRule(function, "close").Times(1) }

// LimitSessions refuses with CKR_SESSION_COUNT to open more than so many sessions in a process.
func LimitSessions(most uint) Rule { return newRule(OpenSession, "limit %d", most) }

// What a token may say of its sessions in the place of their greatest number.
const (
	SessionsUnlimited = 0        // CK_EFFECTIVELY_INFINITE
	SessionsUnknown   = ^uint(0) // CK_UNAVAILABLE_INFORMATION
)

// ReportSessions has the token say that it allows so many sessions, and enforces nothing.
func ReportSessions(most uint) Rule { return newRule(GetTokenInfo, "sessions %d", most) }

// AddTokenFlags has the token show these flags besides its own, such as CKF_USER_PIN_FINAL_TRY.
func AddTokenFlags(flags uint) Rule { return newRule(GetTokenInfo, "flags %#x", flags) }

// FindAtMost has FindObjects find no more than so many objects at once, of those that there are; 0:
// none, as a token whose keys are away.
func FindAtMost(most uint) Rule { return newRule(FindObjects, "find %d", most) }

// PadWithNUL has the token end its texts with NULs instead of blanks, as C does.
func PadWithNUL() Rule { return newRule(GetTokenInfo, "pad 0") }

// PadWithRubbish has the token end its texts with one NUL and rubbish.
func PadWithRubbish() Rule { return newRule(GetTokenInfo, "pad 1") }

// SignInDER has the module return r and s in DER, which PKCS#11 does not allow.
func SignInDER() Rule { return newRule(Sign, "form 0") }

// SignShort has the module leave out the first byte of a signature.
func SignShort() Rule { return newRule(Sign, "form 1") }

// BarePoint has the module return CKA_EC_POINT without its OCTET STRING.
func BarePoint() Rule { return newRule(GetAttributeValue, "point 0") }

// PointInBits has the module return CKA_EC_POINT in a BIT STRING.
func PointInBits() Rule { return newRule(GetAttributeValue, "point 3") }

// SwapKey puts the private key with that label in the place of every other: in what
// FindObjects finds, or under the handle that GetAttributeValue or SignInit is given.
func SwapKey(function, label string) Rule {
	return newRule(function, "swap %s", hex.EncodeToString([]byte(label)))
}

// From has the rule begin with the nth call of the function in a process.
func (r Rule) From(n uint) Rule { r.from = n; return r }

// Times has the rule end after so many calls.
func (r Rule) Times(k uint) Rule { r.times = k; return r }

// Percent has the rule take effect on so many percent of its calls only, at random. The same seed
// chooses the same numbers of calls.
func (r Rule) Percent(p, seed uint) Rule { r.percent, r.seed = p, seed; return r }

// String is the rule as the module reads it.
func (r Rule) String() string {
	text := fmt.Sprintf("%d %d %s %s", r.from, r.times, r.function, r.action)
	if r.percent > 0 {
		text += fmt.Sprintf(" ~%d/%d", r.percent, r.seed)
	}
	return text
}

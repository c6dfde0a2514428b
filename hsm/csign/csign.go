// Package csign signs with two PKCS#11 calls, C_SignInit and C_Sign.
//
// Duty: call both functions of a module that github.com/miekg/pkcs11 loaded. The Sign of that
// binding calls C_Sign twice, since it asks for the length of the signature first. On a network HSM
// that is a third round trip: with 5 ms for each call, 15 ms for a signature instead of 10 ms.
//
// Contract: a signature whose length the caller knows takes two calls; any other takes a third. The
// calls have no timeout. No two calls may use a session at the same time.
package csign

/*
struct mechanism { // CK_MECHANISM
	unsigned long type;
	void *parameter;
	unsigned long length;
};
typedef unsigned long (*sign_init)(unsigned long session, struct mechanism *, unsigned long key);
typedef unsigned long (*sign)(unsigned long session, unsigned char *data, unsigned long length,
	unsigned char *signature, unsigned long *signature_length);

// init_and_sign makes both calls. It builds the mechanism here, since memory of Go that C gets must
// not hold pointers to other memory of Go. For the same reason no parameter is a void *: for those,
// cgo looks for pointers in whatever surrounds the bytes.
static unsigned long init_and_sign(sign_init init, sign sign, unsigned long session,
	unsigned long type, unsigned char *parameter, unsigned long parameter_length, unsigned long key,
	unsigned char *data, unsigned long length, unsigned char *signature,
	unsigned long *signature_length)
{
	struct mechanism mechanism = {type, parameter, parameter_length};
	unsigned long rv = init(session, &mechanism, key);
	return rv ? rv : sign(session, data, length, signature, signature_length);
}

static unsigned long sign_again(sign sign, unsigned long session, unsigned char *data,
	unsigned long length, unsigned char *signature, unsigned long *signature_length)
{
	return sign(session, data, length, signature, signature_length);
}
*/
import "C"

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// Functions are C_SignInit and C_Sign of one module. They are invalid once it is unloaded.
type Functions struct{ init, sign *[0]byte }

// Of returns the functions of the module that the binding has loaded, from the function list that
// the binding uses itself: some modules, such as p11-kit's proxy, return another one with its own
// sessions whenever they are asked. It returns an error if the module lacks one of the functions.
// It panics if the binding keeps its function list elsewhere than v1.1.2 does, which a test shows.
func Of(p *pkcs11.Ctx) (Functions, error) {
	list := reflect.ValueOf(p).Elem().FieldByName("ctx").Elem().FieldByName("sym").Elem()
	named := func(name string) *[0]byte {
		return (*[0]byte)(list.FieldByName(name).UnsafePointer())
	}
	f := Functions{named("C_SignInit"), named("C_Sign")}
	if f.init == nil || f.sign == nil {
		return Functions{}, fmt.Errorf("the PKCS#11 module has no C_SignInit or no C_Sign")
	}
	return f, nil
}

// A Request is what one signature is made of.
type Request struct {
	Key       pkcs11.ObjectHandle
	Mechanism uint   // CKM_…
	Parameter []byte // of the mechanism; mostly empty
	Input     []byte // must not be empty
	Length    int    // of the signature, in bytes
}

// mostLength bounds the length that a module may ask for, in bytes. A signature with RSA of 16,384
// bits has 2,048.
const mostLength = 1 << 16

// Sign makes one signature in the session. After an error the operation may still be active, so the
// caller must close the session. An error is a [pkcs11.Error], or says that the module returned a
// length that cannot be right.
func (f Functions) Sign(session pkcs11.SessionHandle, r Request) ([]byte, error) {
	signature := make([]byte, max(r.Length, 1))
	length := C.ulong(len(signature))
	data, size := address(r.Input), C.ulong(len(r.Input))
	rv := C.init_and_sign(f.init, f.sign, C.ulong(session), C.ulong(r.Mechanism),
		address(r.Parameter), C.ulong(len(r.Parameter)), C.ulong(r.Key),
		data, size, address(signature), &length)
	if rv == pkcs11.CKR_BUFFER_TOO_SMALL && int(length) > len(signature) && length <= mostLength {
		// The operation is still active (PKCS#11 v2.40, section 5.2), and the length is known now.
		signature = make([]byte, length)
		rv = C.sign_again(f.sign, C.ulong(session), data, size, address(signature), &length)
	}
	switch {
	case rv != pkcs11.CKR_OK:
		return nil, pkcs11.Error(rv)
	case length > C.ulong(len(signature)):
		return nil, fmt.Errorf("C_Sign returned a signature of %d bytes in a buffer of %d", length,
			len(signature))
	}
	return signature[:length], nil
}

// address returns where the bytes are.
func address(b []byte) *C.uchar { return (*C.uchar)(unsafe.SliceData(b)) }

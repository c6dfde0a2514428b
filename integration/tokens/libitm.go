package tokens

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>

static void keep_libitm(void) { dlopen("libitm.so.1", RTLD_NOW | RTLD_NODELETE); }
*/
import "C"

// keepLibitm keeps in this process a library that opencryptoki uses. It crashes a thread
// that has used it, once it has been unloaded and loaded again, as it is with opencryptoki.
// That one must not be kept itself: its second C_Finalize closes a file descriptor
// that the first has closed already, and that may be anyone's by then.
func keepLibitm() { C.keep_libitm() }

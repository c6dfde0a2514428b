package tokens

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>

static void keep_libitm(void) { dlopen("libitm.so.1", RTLD_NOW | RTLD_NODELETE); }
*/
import "C"

// keepLibitm keeps a library of opencryptoki loaded. If this library is unloaded and loaded again
// with opencryptoki, it crashes a thread that has used it. opencryptoki itself must be unloaded:
// its second C_Finalize closes a file descriptor that may belong to something else by then.
func keepLibitm() { C.keep_libitm() }

package testenv

import "syscall"

// dieWithParent makes the kernel kill a child when the thread that started it ends (see Spawn). The
// child has its own process group too, so that an interrupt from the terminal reaches the program
// but not the servers that it needs for an orderly end.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

package testenv

import "syscall"

// dieWithParent lets the kernel kill a child when the thread that started it
// ends (see Spawn). The child has a process group of its own too, so that an interrupt typed
// at the terminal reaches the program and not the servers it still needs to end well.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

//go:build !linux

package testenv

import "syscall"

// dieWithParent gives a child its own process group (see process_linux.go). Only Linux can kill the
// child when its parent dies.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

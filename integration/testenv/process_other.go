//go:build !linux

package testenv

import "syscall"

// dieWithParent gives a child a process group of its own (see process_linux.go). Only Linux
// can kill it when the program that started it dies: elsewhere it then stays.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

//go:build !cgo

package ckr

// ckrError stands for the error of a call into a PKCS#11 module, which cannot be made without cgo.
type ckrError uint

// Error is never called.
func (ckrError) Error() string { return "a PKCS#11 error" }

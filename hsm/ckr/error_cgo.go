//go:build cgo

package ckr

import "github.com/miekg/pkcs11"

// ckrError is the error of a call into a PKCS#11 module.
type ckrError = pkcs11.Error

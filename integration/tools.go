//go:build tools

// Package integration has no code: this file keeps in go.mod the servers that package testenv
// builds.
package integration

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)

//go:build ignore

// Generate makes the lists of package debian, in the directory where it runs:
//
//	go run generate.go amd64-nornd …
//
// One takes about half an hour of one processor. What is done is kept beside the list, in a file
// that ends in .part, in the order of the processes; if that is there, generate goes on with it.
package main

import (
	"fmt"
	"io"
	"log"
	"math/big"
	"os"
	"slices"
	"strings"

	"hsm-signer/policy/pkcs10/debian"
	"hsm-signer/policy/pkcs10/debian/generator"
)

const bits = 2048

func main() {
	log.SetFlags(log.Ltime)
	chosen := slices.DeleteFunc(generator.Variants(), func(v generator.Variant) bool {
		return !slices.Contains(os.Args[1:], v.Name)
	})
	if len(chosen) == 0 || len(chosen) != len(os.Args)-1 {
		log.Fatalf("give the variants to make; there are %s", strings.Join(names(), ", "))
	}
	for _, v := range chosen {
		if err := generate(v); err != nil {
			log.Fatalf("%s: %v", v.Name, err)
		}
	}
}

func names() []string {
	var all []string
	for _, v := range generator.Variants() {
		all = append(all, v.Name)
	}
	return all
}

func generate(v generator.Variant) error {
	name := fmt.Sprintf("rsa%d-%s.list", bits, v.Name)
	part := name + ".part"
	if err := collect(v, part); err != nil {
		return err
	}
	prints, err := os.ReadFile(part)
	if err != nil {
		return err
	}
	sorted := slices.SortedFunc(slices.Chunk(prints, debian.FingerprintSize), slices.Compare)
	if err := os.WriteFile(name, slices.Concat(sorted...), 0o644); err != nil {
		return err
	}
	return os.Remove(part)
}

// collect appends to the file what is missing in it.
func collect(v generator.Variant, part string) error {
	file, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	done := int(size / debian.FingerprintSize)
	for process := done; process < generator.Processes; process++ {
		p, q := v.Primes(process, bits)
		entry := []byte(debian.Fingerprint(new(big.Int).Mul(p, q)))
		// At its place, so that one that was half written when generate was stopped is written again.
		if _, err := file.WriteAt(entry, int64(process*debian.FingerprintSize)); err != nil {
			return err
		}
		if process%256 == 255 {
			log.Printf("%s: %d of %d", v.Name, process+1, generator.Processes)
		}
	}
	return file.Close()
}

//go:build ignore

// Generate makes lists of package debian, in the directory where it runs:
//
//	go run generate.go rsa2048-amd64-nornd ...
//
// One of RSA-2048 takes about half an hour of one processor. What is done is kept next to the list,
// in a file that ends in .part, in the order of the processes; if that exists, generate continues
// with it.
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
	"hsm-signer/policy/pkcs10/internal/generator"
)

func main() {
	log.SetFlags(log.Ltime)
	if len(os.Args) < 2 {
		log.Fatal("give the lists to make, such as rsa2048-amd64-nornd")
	}
	for _, name := range os.Args[1:] {
		if err := generate(name); err != nil {
			log.Fatalf("%s: %v", name, err)
		}
	}
}

func generate(name string) error {
	variant, bits, err := parse(name)
	if err != nil {
		return err
	}
	part := name + ".list.part"
	if err := collect(variant, bits, part); err != nil {
		return err
	}
	prints, err := os.ReadFile(part)
	if err != nil {
		return err
	}
	sorted := slices.SortedFunc(slices.Chunk(prints, debian.FingerprintSize), slices.Compare)
	if err := os.WriteFile(name+".list", slices.Concat(sorted...), 0o644); err != nil {
		return err
	}
	return os.Remove(part)
}

// parse takes a list's name apart.
func parse(name string) (variant generator.Variant, bits int, err error) {
	var rest string
	if _, err := fmt.Sscanf(name, "rsa%d-%s", &bits, &rest); err != nil {
		return variant, 0, fmt.Errorf("is not of the form rsaBITS-VARIANT: %w", err)
	}
	if bits < 1792 || bits%128 != 0 {
		return variant, 0,
			fmt.Errorf("keys of %d bits cannot be made; give a multiple of 128 from 1792", bits)
	}
	var names []string
	for _, v := range generator.Variants() {
		if v.Name == rest {
			return v, bits, nil
		}
		names = append(names, v.Name)
	}
	return variant, 0, fmt.Errorf("there is no variant %q; there are %s", rest,
		strings.Join(names, ", "))
}

// collect appends to the file what is missing in it.
func collect(v generator.Variant, bits int, part string) error {
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
		// At its place, so that one that was half written when generate was stopped is written
		// again.
		if _, err := file.WriteAt(entry, int64(process*debian.FingerprintSize)); err != nil {
			return err
		}
		if process%256 == 255 {
			log.Printf("%s: %d of %d", part, process+1, generator.Processes)
		}
	}
	return file.Close()
}

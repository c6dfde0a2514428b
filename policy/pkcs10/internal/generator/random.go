package generator

import "crypto/sha1"

const (
	poolSize  = 1023 // STATE_SIZE
	blockSize = sha1.Size
	halfBlock = blockSize / 2
)

// A random is OpenSSL's generator of random numbers (crypto/rand/md_rand.c) with Debian's change.
type random struct {
	machine machine
	process int

	// The last byte of the pool is outside its circle. OpenSSL writes there and never reads it: a
	// draw can leave next at poolSize itself.
	pool            [poolSize + 1]byte
	next, filled    int // where the pool is used next, and how much of it ever was
	digest          [blockSize]byte
	draws, blocks   uint64 // how many draws there were, and how many blocks were added
	polled, stirred bool
	text            []byte // what is hashed
}

// add is RAND_add of so many bytes, of which Debian's change leaves nothing but their number.
func (r *random) add(bytes int) {
	at, blocks, digest := r.next, r.blocks, r.digest
	r.blocks += uint64((bytes + blockSize - 1) / blockSize)
	r.next += bytes
	r.filled = max(r.filled, min(r.next, poolSize))
	r.next %= poolSize
	for ; bytes > 0; bytes -= blockSize {
		size := min(bytes, blockSize)
		r.text = append(r.text[:0], digest[:]...)
		r.appendPool(at, size, poolSize)
		r.appendCounts(r.draws, blocks)
		digest = sha1.Sum(r.text)
		at = r.mix(digest[:size], at, poolSize)
		blocks++
	}
	for i := range r.digest {
		r.digest[i] ^= digest[i]
	}
}

// read is RAND_bytes.
func (r *random) read(out []byte) {
	r.poll()
	r.stir()
	at, digest, draws, blocks := r.next, r.digest, r.draws, r.blocks
	r.draws++
	r.next += (len(out) + halfBlock - 1) / halfBlock * halfBlock
	if r.next > r.filled {
		r.next %= r.filled
	}
	r.text = r.text[:0]
	if r.process != 0 { // only in the first block
		r.text = r.machine.order.AppendUint32(r.text, uint32(r.process))
	}
	for len(out) > 0 {
		r.text = append(r.text, digest[:]...)
		r.appendCounts(draws, blocks)
		r.appendPool(at, halfBlock, r.filled)
		digest = sha1.Sum(r.text)
		at = r.mix(digest[:halfBlock], at, r.filled)
		out = out[copy(out, digest[halfBlock:]):]
		r.text = r.text[:0]
	}
	r.appendCounts(draws, blocks)
	r.text = append(r.text, digest[:]...)
	r.text = append(r.text, r.digest[:]...)
	r.digest = sha1.Sum(r.text)
}

// poll is RAND_poll (crypto/rand/rand_unix.c), done once: 32 bytes of /dev/urandom, and three C
// longs, which are the process, the user and the time.
func (r *random) poll() {
	if r.polled {
		return
	}
	r.polled = true
	r.add(32)
	for range 3 {
		r.add(r.machine.long)
	}
}

// stir walks once through the whole pool, before the first draw.
func (r *random) stir() {
	if r.stirred {
		return
	}
	r.stirred = true
	for left := poolSize; left > 0; left -= blockSize {
		r.add(blockSize)
	}
}

// appendPool appends to the text so many bytes of the pool, as a circle of filled bytes.
func (r *random) appendPool(at, size, filled int) {
	over := max(at+size-filled, 0)
	r.text = append(r.text, r.pool[at:at+size-over]...)
	r.text = append(r.text, r.pool[:over]...)
}

// appendCounts appends two counters to the text, as C longs.
func (r *random) appendCounts(draws, blocks uint64) {
	for _, n := range []uint64{draws, blocks} {
		if r.machine.long == 4 {
			r.text = r.machine.order.AppendUint32(r.text, uint32(n))
		} else {
			r.text = r.machine.order.AppendUint64(r.text, n)
		}
	}
}

// mix puts bytes into the pool, as a circle of filled bytes, and returns where it continues.
func (r *random) mix(bytes []byte, at, filled int) int {
	for _, b := range bytes {
		r.pool[at] ^= b
		if at++; at >= filled {
			at = 0
		}
	}
	return at
}

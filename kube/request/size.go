package request

import "fmt"

// A requester may create an object that etcd stores and that nothing can be added to any more. No
// answer can be written to it, so it is refused before anything is approved or signed.
const (
	// MostStored is how many bytes etcd takes in one request by default (--max-request-bytes).
	MostStored = 1536 << 10
	// RoomForAnswer is kept for an approval, a certificate with its chain and a refusal, in bytes.
	RoomForAnswer = 128 << 10
	// RoomForRefusal is kept for one condition and the API server's note of who wrote it, in bytes.
	RoomForRefusal = 8 << 10
)

// HasRoom reports whether so many bytes more can be written to an object of the stored size.
func HasRoom(storedSize, more int) bool { return storedSize+more <= MostStored }

// SizeFault returns why no answer can be written to an object of the stored size, or "" if it has
// room for one.
func SizeFault(storedSize int) string {
	if HasRoom(storedSize, RoomForAnswer) {
		return ""
	}
	return fmt.Sprintf("has about %d bytes; etcd stores %d, and a certificate needs up to "+
		"%d of them",
		storedSize, MostStored, RoomForAnswer)
}

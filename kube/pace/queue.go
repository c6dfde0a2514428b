package pace

// A queue is a heap of requests for package heap, the oldest first.
type queue[K comparable] []*entry[K]

func (q queue[K]) Len() int           { return len(q) }
func (q queue[K]) Less(i, j int) bool { return q[i].created.Before(q[j].created) }
func (q queue[K]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push appends an entry.
func (q *queue[K]) Push(x any) {
	e := x.(*entry[K])
	e.index = len(*q)
	*q = append(*q, e)
}

// Pop removes the last entry.
func (q *queue[K]) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	e.index = -1
	(*q)[last] = nil
	*q = (*q)[:last]
	return e
}

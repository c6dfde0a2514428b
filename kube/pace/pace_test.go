package pace

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// quick is how long a call of an API server takes that has little to do.
const quick = 2 * time.Millisecond

// A fleet is a pacer, and clients that ask one after another.
type fleet struct {
	*Pacer[string]
	t *testing.T

	mu       sync.Mutex
	released []string
	answered map[string]time.Time
	took     time.Duration // by a call of the API server
}

// inBubble runs a test with a fleet, on a clock of its own.
func inBubble(t *testing.T, o Options, test func(*fleet)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, answered: map[string]time.Time{}, took: quick}
		f.Pacer = New(o, func(key string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.released = append(f.released, key)
		})
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { f.Run(ctx) })
		test(f)
		cancel()
		group.Wait()
	})
}

// ask has so many clients ask, evenly over that time, while others are answered.
func (f *fleet) ask(clients int, over time.Duration) {
	for i := range clients {
		name := fmt.Sprintf("%03d", i)
		f.Asked(name, "client "+name, time.Now(), i)
		f.try(name)
		f.sync(over / time.Duration(clients))
	}
}

// try does what the controller does with a request.
func (f *fleet) try(key string) {
	if f.Admit(key) && f.Watched(key, true, f.took) {
		f.answered[key] = time.Now()
		f.Gone(key)
	}
}

// sync waits, and tries what is released meanwhile.
func (f *fleet) sync(wait time.Duration) {
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		synctest.Wait()
		f.mu.Lock()
		released := f.released
		f.released = nil
		f.mu.Unlock()
		for _, key := range released {
			f.try(key)
		}
		if !time.Now().Before(end) {
			return
		}
	}
}

func (f *fleet) mustAnswer(want int) {
	f.t.Helper()
	if len(f.answered) != want {
		f.t.Errorf("%d clients were answered, want %d; %+v", len(f.answered), want, f.State())
	}
}

func TestAStreamIsAnsweredAtOnce(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		f.ask(150, 5*time.Second)
		f.mustAnswer(150)
	})
}

func TestABurstIsHeldBack(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		f.ask(300, time.Second)
		if n := len(f.answered); n > 100 {
			t.Errorf("%d of 300 clients were answered while others arrived", n)
		}
		if s := f.State(); s.Reason != ReasonArrivals || s.Rate != 0 || s.Waiting == 0 ||
			s.Clients < 200 {
			t.Errorf("%+v", s)
		}
		f.sync(time.Second)
		if s := f.State(); s.Reason != ReasonWatchers || s.Rate <= 0 || s.Rate > 50 {
			t.Errorf("a second later: %+v", s)
		}
		f.sync(Patience)
		f.mustAnswer(300)
	})
}

// Several answers at once overrun the buffers of watches, however few they are.
func TestAnswersAreWrittenOneByOneAtFirst(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		for i := range 30 {
			f.Asked(fmt.Sprint(i), fmt.Sprint(i), time.Now(), 0)
		}
		if !f.Admit("0") || !f.Watched("0", true, quick) {
			t.Fatal("the first request is not admitted")
		}
		f.try("1")
		f.sync(time.Second)
		f.mustAnswer(0)
		f.Gone("0")
		f.sync(time.Second)
		f.mustAnswer(1)
	})
}

func TestTheOldestIsAnsweredFirst(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		now := time.Now()
		for i := range 60 { // a backlog, seen in another order
			f.Asked(fmt.Sprintf("%03d", i), fmt.Sprint(i),
				now.Add(-time.Duration(i)*100*time.Millisecond), 60)
		}
		f.took = time.Second // so that nothing is answered yet
		for i := range 60 {
			f.try(fmt.Sprintf("%03d", i))
		}
		f.took = quick
		f.sync(Patience)
		f.mustAnswer(60)
		order := slices.SortedFunc(keys(f.answered), func(a, b string) int {
			return f.answered[a].Compare(f.answered[b])
		})
		if held := order[few:]; !slices.IsSortedFunc(held, func(a, b string) int {
			return f.answered[a].Compare(f.answered[b])
		}) || held[len(held)-1] > held[0] {
			t.Errorf("answered in this order: %v", order)
		}
	})
}

func TestASlowAPIServerIsLeftAlone(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		f.ask(20, 2*time.Second) // which shows how long a call usually takes
		f.mustAnswer(20)
		f.took = 300 * time.Millisecond
		for i := range 50 {
			f.Asked(fmt.Sprint("later ", i), fmt.Sprint("later ", i), time.Now(), 100)
			f.try(fmt.Sprint("later ", i))
		}
		answered := len(f.answered)
		f.sync(longestHold - time.Second)
		if s := f.State(); s.Reason != ReasonSlow || len(f.answered) > answered {
			t.Errorf("%d more were answered; %+v", len(f.answered)-answered, s)
		}
		f.took = quick
		f.sync(5 * time.Second)
		f.mustAnswer(70)
	})
}

// A hold for slow calls ends by itself: clients that get no answer watch, and are a load too.
func TestAHoldIsBounded(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		f.ask(20, 2*time.Second)
		f.took = 300 * time.Millisecond
		for i := range 20 {
			f.Asked(fmt.Sprint("later ", i), fmt.Sprint("later ", i), time.Now(), 100)
			f.try(fmt.Sprint("later ", i))
		}
		answered := len(f.answered)
		f.sync(longestHold - time.Second)
		f.mustAnswer(answered)
		f.sync(longestHold)
		f.mustAnswer(40)
	})
}

// However slow the API server is, nobody waits until the client gives up.
func TestPatienceEnds(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		f.ask(20, 2*time.Second)
		f.took = 10 * time.Second
		began := time.Now()
		for i := range 200 {
			f.Asked(fmt.Sprint("later ", i), fmt.Sprint("later ", i), began, 200)
			f.try(fmt.Sprint("later ", i))
		}
		f.sync(Patience + 15*time.Second)
		f.mustAnswer(220)
	})
}

// Where nobody watches, nothing is held back, however many ask.
func TestAStormThatNobodyWatchesIsAnsweredAtOnce(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		for i := range 5000 {
			key := fmt.Sprint(i)
			f.Asked(key, key, time.Now(), i)
			if !f.Admit(key) || !f.Watched(key, false, quick) {
				t.Fatalf("request %d waits: %+v", i, f.State())
			}
			f.Gone(key)
		}
	})
}

// One pod that makes many requests is one client.
func TestManyRequestsOfOneClientCountOnce(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		for i := range 1000 {
			f.Asked(fmt.Sprint(i), "one", time.Now(), i)
			f.Watched(fmt.Sprint(i), true, quick)
		}
		if s := f.State(); s.Clients != 1 || s.Reason != ReasonFew {
			t.Errorf("%+v", s)
		}
	})
}

func TestAFixedRate(t *testing.T) {
	inBubble(t, Options{Rate: 10}, func(f *fleet) {
		f.ask(40, 40*time.Millisecond)
		f.sync(2 * time.Second)
		if n := len(f.answered); n < 20 || n > 23 {
			t.Errorf("%d were answered in two seconds; %+v", n, f.State())
		}
		f.sync(2 * time.Second)
		f.mustAnswer(40)
	})
	inBubble(t, Options{Unlimited: true}, func(f *fleet) {
		f.took = time.Minute
		f.ask(300, 300*time.Millisecond)
		f.mustAnswer(300)
		if s := f.State(); s.Reason != ReasonUnlimited || !math.IsInf(s.Rate, 1) {
			t.Errorf("%+v", s)
		}
	})
}

// Whatever was asked and is gone leaves nothing behind.
func TestNothingIsRemembered(t *testing.T) {
	inBubble(t, Options{}, func(f *fleet) {
		f.ask(300, time.Second)
		for i := range 300 {
			f.Gone(fmt.Sprintf("%03d", i))
			f.Gone(fmt.Sprintf("%03d", i))
		}
		f.sync(longestRead + memory)
		f.State()
		if len(f.open)+len(f.clients)+len(f.readers)+f.waiting.Len()+f.Pacer.watched > 0 {
			t.Errorf("%d open, %d clients, %d readers, %d waiting", len(f.open), len(f.clients),
				len(f.readers), f.waiting.Len())
		}
	})
}

// An attempt that failed is admitted again, at its price.
func TestTriedAgain(t *testing.T) {
	inBubble(t, Options{Rate: 1}, func(f *fleet) {
		f.Asked("a", "a", time.Now(), 0)
		for range 2 {
			if !f.Admit("a") {
				t.Error("an admission ended by itself")
			}
		}
		if f.Tried("a"); f.Admit("a") {
			t.Error("it is admitted twice within a second")
		}
		f.sync(2 * time.Second)
		f.mustAnswer(1)
	})
}

func keys(m map[string]time.Time) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

// Package rotate holds the commands "ca rotate": they order the steps of a rotation of the CA
// through the lease, and show how it stands.
//
// Contract: the replica that leads decides and carries out; the commands write what is wanted, wait
// for the answer, and withdraw the order if there is none. Only "restore" writes the state itself,
// and only while nobody leads.
package rotate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hsm-signer/cmd/hsm-signer/internal/config"
	"hsm-signer/cmd/hsm-signer/internal/exit"
	"hsm-signer/cmd/hsm-signer/internal/rotation"
	"hsm-signer/cmd/hsm-signer/internal/setting"
	"hsm-signer/kube/clientset"
	"hsm-signer/kube/lease"
)

// NewCommand returns the command "rotate".
func NewCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "rotate",
		Short: "Change from one CA to the next, step by step, while hsm-signer works",
		Long: `Orders a step of a rotation of the CA, or shows how it stands. The replica that leads
checks what must hold before the step, takes it, or answers what is missing. See
docs/rotation.md.

The commands run with the environment of "run" and its credential, for example in a pod of
hsm-signer. They read and write only its lease.`,
	}
	for _, s := range []struct {
		step  rotation.Step
		short string
	}{
		{rotation.Announce, "Begin: publish the roots of both CAs"},
		{rotation.Trust, "Confirm that whatever trusts the CA trusts both now"},
		{rotation.Sign, "Have the next CA sign"},
		{rotation.Retire, "End: publish only the roots of the next CA"},
		{rotation.Back, "Go one step back"},
	} {
		command.AddCommand(newStepCommand(s.step, s.short))
	}
	command.AddCommand(newStatusCommand(), newRestoreCommand())
	return command
}

// examples are commands, by the step.
var examples = map[rotation.Step]string{
	rotation.Announce: "  hsm-signer ca rotate announce",
	rotation.Trust:    "  hsm-signer ca rotate trust",
	rotation.Sign: `  hsm-signer ca rotate sign --dry-run
  hsm-signer ca rotate sign --checked 1a2b3c4d,5e6f7a8b`,
	rotation.Retire: `  hsm-signer ca rotate retire
  hsm-signer ca rotate retire --force --reason "all pods have certificates of the next CA"`,
	rotation.Back: "  hsm-signer ca rotate back",
}

// forced says what --force is for, by the step; the others are never forced.
var forced = map[rotation.Step]string{
	rotation.Retire: "although certificates of the former CA are valid; needs --reason",
	rotation.Back:   "although certificates of the next CA are valid; needs --reason",
}

func newStepCommand(step rotation.Step, short string) *cobra.Command {
	settings := config.Named("KUBECONFIG", "LEASE_NAMESPACE", "LEASE_NAME")
	order := rotation.Order{Step: step}
	var timeout string
	command := &cobra.Command{
		Use:   string(step),
		Short: short,
		Long: short + `, if what must hold before that holds. The order of the steps, and
what each needs: docs/rotation.md.

Exit code 0 if the step was taken, 2 if it was refused: then the answer names what is missing, and
nothing has changed.`,
		Example: examples[step],
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, faults := config.Read(cmd, settings)
			faults.Add("--reason", rotation.CheckReason(order.Reason))
			var wait time.Duration
			faults.Add("--timeout", setting.Duration(timeout, time.Second, &wait))
			t := open(c, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			return t.give(ctx, order, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	flags := command.Flags()
	flags.StringVar(&order.Reason, "reason", "", "why, for the journal")
	flags.BoolVar(&order.DryRun, "dry-run", false, "only ask what is missing")
	flags.StringVar(&timeout, "timeout", "5m", "longest wait for the answer")
	if why, is := forced[step]; is {
		flags.BoolVar(&order.Force, "force", false, why)
	}
	if step == rotation.Sign {
		flags.StringSliceVar(&order.Journals, "checked", nil, "journals of other replicas, "+
			"comma-separated, of which you have checked that no pod with a certificate was "+
			"created before \"trusted\"")
	}
	return command
}

// target is the lease that the commands read and write.
type target struct {
	lease.Lease
	client clientset.Interface
	leases clientset.Leases
}

// open returns the lease that the configuration names, and adds what is wrong to the faults.
func open(c *config.Config, faults *setting.Faults) *target {
	t := &target{Lease: c.LeaseToRead(faults)}
	if client, _ := c.LoadClient(faults, nil); client != nil {
		t.client, t.leases = client, client.Leases(t.Namespace)
	}
	return t
}

// get reads the lease.
func (t *target) get(ctx context.Context) (*coordinationv1.Lease, error) {
	found, err := t.leases.Get(ctx, t.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the lease %s/%s: %w", t.Namespace, t.Name, err)
	}
	return found, nil
}

// change writes the lease as change leaves it, unless that returns an error. It is tried again
// when another has written it in between.
func (t *target) change(ctx context.Context, change func(*coordinationv1.Lease) error) error {
	for {
		found, err := t.get(ctx)
		if err != nil {
			return err
		}
		found = found.DeepCopy()
		if found.Annotations == nil {
			found.Annotations = map[string]string{}
		}
		if err := change(found); err != nil {
			return err
		}
		_, err = t.leases.Update(ctx, found, metav1.UpdateOptions{})
		switch {
		case err == nil:
			return nil
		case !apierrors.IsConflict(err) || ctx.Err() != nil:
			return fmt.Errorf("write the lease %s/%s: %w", t.Namespace, t.Name, err)
		}
	}
}

// alive is how long after its last renewal a leader may still lead.
const alive = 15 * time.Second

// leader returns who leads; empty if nobody does.
func leader(l *coordinationv1.Lease) string {
	if l.Spec.HolderIdentity == nil || l.Spec.RenewTime == nil ||
		time.Since(l.Spec.RenewTime.Time) > alive {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// errNoLeader says that nobody can carry an order out.
var errNoLeader = errors.New("no replica leads, so nobody can take the step: see /readyz of each " +
	"replica, and \"hsm-signer ca rotate status\"")

// give orders a step, and waits for the answer.
func (t *target) give(ctx context.Context, order rotation.Order, out io.Writer) error {
	order.ID, order.By, order.At = rand.Text(), author(), time.Now().UTC().Truncate(time.Second)
	err := t.change(ctx, func(l *coordinationv1.Lease) error {
		former, is, err := rotation.ReadOrder(l.Annotations)
		switch {
		case leader(l) == "":
			return errNoLeader
		case is && err == nil && !former.Stale(time.Now()):
			return fmt.Errorf("another order has no answer yet: %s, by %s at %s; try again",
				former.Step, former.By, former.At.Format(time.RFC3339))
		}
		l.Annotations[rotation.OrderKey] = rotation.Encode(order)
		return nil
	})
	if err != nil {
		return err
	}
	answer, err := t.await(ctx, order.ID)
	if err != nil {
		return errors.Join(err, t.withdraw(order.ID))
	}
	switch {
	case answer.Refused != "":
		return exit.With(exit.Refused, errors.New(answer.Refused))
	case order.DryRun:
		_, err = fmt.Fprintf(out, "nothing is missing for %s; the phase is %s\n", order.Step,
			answer.Phase)
	default:
		_, err = fmt.Fprintf(out, "the phase is %s\n", answer.Phase)
	}
	return err
}

// author names whoever runs this, for the log.
func author() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("user %d on %s", os.Getuid(), host)
}

// pollInterval is the time between two looks for an answer.
const pollInterval = 300 * time.Millisecond

// await waits for the answer to an order.
func (t *target) await(ctx context.Context, id string) (rotation.Answer, error) {
	for {
		found, err := t.get(ctx)
		if err == nil {
			if answer, is := rotation.ReadAnswer(found.Annotations); is && answer.ID == id {
				return answer, nil
			}
		}
		select {
		case <-ctx.Done():
			return rotation.Answer{}, errors.Join(errors.New("there was no answer: the order is "+
				"withdrawn; see the log of the replica that leads"), err)
		case <-time.After(pollInterval):
		}
	}
}

// withdrawTimeout bounds the withdrawal.
const withdrawTimeout = 10 * time.Second

// withdraw takes the order back, so that nobody carries it out later.
func (t *target) withdraw(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), withdrawTimeout)
	defer cancel()
	err := t.change(ctx, func(l *coordinationv1.Lease) error {
		if order, is, _ := rotation.ReadOrder(l.Annotations); !is || order.ID != id {
			return errGone
		}
		delete(l.Annotations, rotation.OrderKey)
		return nil
	})
	if errors.Is(err, errGone) {
		return errors.New("the order was not withdrawn: a replica is carrying it out; see " +
			"\"hsm-signer ca rotate status\"")
	}
	return err
}

var errGone = errors.New("the lease has no such order")

func newRestoreCommand() *cobra.Command {
	settings := config.Named("KUBECONFIG", "LEASE_NAMESPACE", "LEASE_NAME", "CA_CERT_FILE",
		"NEXT_CA_CERT_FILE", "NEXT_TRUST_BUNDLE_FILE")
	var reason string
	var phases []string
	for _, phase := range rotation.Phases {
		phases = append(phases, string(phase))
	}
	command := &cobra.Command{
		Use:   "restore PHASE",
		Short: "Confirm the phase that the lease has lost",
		Long: `Writes a phase (` + strings.Join(phases, ", ") + `) into the lease, from
CA_CERT_FILE to NEXT_CA_CERT_FILE. It is for a lease that was deleted or damaged during a
rotation, and with the phase none for a CA that you have replaced by hand. It is refused while a
replica leads. All times of the rotation begin again.

Before that, find out the phase: the last line of the kind rotation in each replica's journal.`,
		Example:   `  hsm-signer ca rotate restore signing --reason "the lease was deleted"`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: phases,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, faults := config.Read(cmd, settings)
			faults.Add("--reason", rotation.CheckReason(reason))
			if reason == "" {
				faults.Addf("--reason", "is not set: say what happened; the journal keeps it")
			}
			state := restored(c, rotation.Phase(args[0]), reason, faults)
			t := open(c, faults)
			if err := faults.Err(); err != nil {
				return err
			}
			return t.restore(cmd.Context(), state, cmd.OutOrStdout())
		},
	}
	config.AddFlags(command, settings)
	config.AddCAFlags(command)
	command.Flags().StringVar(&reason, "reason", "", "what happened, for the journal")
	return command
}

// restored returns the state to write, and adds what is wrong to the faults.
func restored(c *config.Config, phase rotation.Phase, reason string,
	faults *setting.Faults) rotation.State {
	if !slices.Contains(rotation.Phases, phase) {
		faults.Addf("PHASE", "%q is none of %v", phase, rotation.Phases)
		return rotation.State{}
	}
	roots := rotation.NewRootSet(c.LoadNextRoots(faults))
	state, err := rotation.Restored(phase, keysOf(c, faults), roots, time.Now(), reason)
	if len(*faults) == 0 {
		faults.Add("PHASE", err)
	}
	return state
}

// restoreTimeout bounds the attempts to write a restored state.
const restoreTimeout = 30 * time.Second

// restore writes a state into the lease while nobody leads. A missing lease is created.
func (t *target) restore(ctx context.Context, state rotation.State, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	err := t.change(ctx, func(l *coordinationv1.Lease) error {
		if holder := leader(l); holder != "" {
			return exit.With(exit.Refused, fmt.Errorf("the replica %s leads: order a step "+
				"instead, or stop it first", holder))
		}
		l.Annotations[rotation.StateKey] = rotation.Encode(state)
		delete(l.Annotations, rotation.OrderKey)
		return nil
	})
	if apierrors.IsNotFound(err) {
		_, err = t.leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Namespace: t.Namespace, Name: t.Name,
			Annotations: map[string]string{rotation.StateKey: rotation.Encode(state)},
		}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "the lease says: %s\n", state)
	return err
}

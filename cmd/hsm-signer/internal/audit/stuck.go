package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"hsm-signer/cmd/hsm-signer/internal/stuck"
	"hsm-signer/cmd/hsm-signer/internal/terminal"
)

// listStuck lists the pods that run without the certificate that was issued to them. If pods cannot
// be read, it lists those of the other namespaces, and returns an error.
func (l *auditList) listStuck(ctx context.Context) error {
	found, err := stuck.Find(ctx, l.dir, l.client, time.Now())
	if err != nil {
		err = fmt.Errorf("some stuck pods may be missing from the list: %w", err)
	}
	if l.output == "json" {
		return errors.Join(l.stuckJSON(found), err)
	}
	return errors.Join(l.stuckText(found), err)
}

// stuckJSON prints one line for each pod: its last certificate, and the pod with the evidence.
func (l *auditList) stuckJSON(found []stuck.Found) error {
	for _, f := range found {
		lives := true
		view := viewOf(f.Issued)
		view.Pod = &podView{
			Namespace: f.Namespace, Name: f.Name, Lives: &lives, Owner: controllerOf(f.Pod),
			Restart: f.Delete(),
			Node:    f.Node, Evidence: f.Why, Strong: f.Sure,
		}
		if err := terminal.PrintJSON(l.out, view); err != nil {
			return err
		}
	}
	return nil
}

// stuckText prints a table, and below it the commands.
func (l *auditList) stuckText(found []stuck.Found) error {
	table := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tNODE\tOWNER\tREQUEST\tEVIDENCE")
	var commands []string
	for _, f := range found {
		owner := controllerOf(f.Pod)
		if owner == "" {
			owner = "none: nothing recreates it"
		}
		strength := "weak: "
		if f.Sure {
			strength = "strong: "
		}
		fields := []string{f.Namespace + "/" + f.Name, f.Node, owner, f.Issued.Name, strength +
			f.Why}
		for i := range fields {
			fields[i] = terminal.OneLine(fields[i])
		}
		fmt.Fprintln(table, strings.Join(fields, "\t"))
		commands = append(commands, f.Delete())
	}
	if err := table.Flush(); err != nil || len(commands) == 0 {
		return err
	}
	_, err := fmt.Fprintf(l.out, "\nThese pods run without the certificate that was issued to "+
		"them. Delete them; their successors request again:\n  %s\n",
		strings.Join(commands, "\n  "))
	return err
}

// controllerOf returns kind, namespace and name of the pod's controller, or "" if it has none.
func controllerOf(pod stuck.Pod) string {
	if pod.Owner == nil {
		return ""
	}
	return pod.Owner.Kind + " " + pod.Namespace + "/" + pod.Owner.Name
}

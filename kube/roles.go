package kube

// candidate is a controller as it stands for election; see [lease.Candidate].
type candidate struct{ *Controller }

// Fit returns nil while the controller could serve requests if it led.
func (c candidate) Fit() error {
	if c.Process == nil {
		return nil
	}
	return c.Process.Fit()
}

// Annotations returns what each write of the lease says in addition to the leader.
func (c candidate) Annotations() map[string]string {
	if c.Process == nil {
		return nil
	}
	return c.Process.Annotations()
}

// Heard is shown the annotations of the lease.
func (c candidate) Heard(annotations map[string]string) error {
	if c.Process == nil {
		return nil
	}
	return c.Process.Heard(annotations)
}

// Written is shown the annotations of the lease that this controller has written.
func (c candidate) Written(annotations map[string]string) {
	if c.Process != nil {
		c.Process.Written(annotations)
	}
}

// Leads takes up what may have been left to another.
func (c candidate) Leads() { c.LookAgain() }

// Failed has the permissions looked at, if that is why the lease could not be written.
func (c candidate) Failed(err error) { c.access.Recheck(err) }

// Changed reports who leads.
func (c candidate) Changed(identity string) { c.sinks.Report(LeaderChange{Identity: identity}) }

// accessUser is a controller as its permissions are watched; see [access.Controller].
type accessUser struct{ *Controller }

// Unblocked takes all requests up again.
func (u accessUser) Unblocked() { u.LookAgain() }

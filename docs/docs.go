// Package docs has the pages of the manual that hsm-signer shows itself.
//
// Duty: embed the runbook.
//
// Contract: the text is docs/runbook.md, unchanged.
package docs

import _ "embed" // the runbook

// Runbook is runbook.md, in Markdown.
//
//go:embed runbook.md
var Runbook string

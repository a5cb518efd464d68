"""One HTML file that shows a run: `reading` takes it from the run folder, `figures` says what is shown, `plots` draws,
`page` puts it together. The figures are those of the artifacts; nothing is computed anew that a stage has reported."""

"""Everything that is drawn: images, charts and films, and the callbacks that draw them while a stage learns."""

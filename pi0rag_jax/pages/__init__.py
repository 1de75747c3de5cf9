"""Pages that people read: charts, short films and what a self-contained HTML page is made of."""

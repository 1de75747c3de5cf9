"""Policy heads on the features of a frozen backbone: fully connected, LSTM, transformer, discrete."""

"""What each experiment shows, by its name."""

TITLES = {
    "table1": "Test accuracy of backprop, DNI and LCT",
    "table2": "A larger network",
    "table3": "A multilayer perceptron: backprop, ADMM, DNI and LCT",
    "table4": "Backprop with joint losses",
    "table5": "LSTM language models: backprop and LCT",
    "table6": "Memory of each worker",
    "table7": "Quality of every exit (tables VII and IX)",
    "table8": "Complexity of every exit (tables VIII and X)",
    "fig3": "Sufficient descent during training, convolutional network",
    "fig4": "Sufficient descent during training, LSTM",
    "fig5": "Loss over training time, convolutional networks",
    "fig6": "Loss over training time, LSTM",
    "fig7": "Pipelined backprop and LCT over training time",
    "critics": "What the critics are and learn: forms of (5), losses, architectures",
    "exits": "Accuracy over multiply-adds: exits of one training, networks trained alone, and others",
}
